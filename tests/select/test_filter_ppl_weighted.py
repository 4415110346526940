import numpy as np
import pytest

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.decide import decide
from npd_ascend.select.registry import FILTERS


def weights(make_scores, nll):
    return decide(make_scores(teacher_cond=nll), FILTERS.find("ppl_weighted"), SelectConfig(filter="ppl_weighted"))


def test_weight_is_proportional_to_inverse_perplexity(make_scores):
    made = weights(make_scores, np.log([1.0, 2.0, 4.0]))
    assert made.keep.all() and made.metric == pytest.approx([1, 2, 4])
    assert made.weight.mean() == pytest.approx(1)
    assert made.weight[0] / made.weight == pytest.approx([1, 2, 4])
    assert "interpretation" in made.note


def test_weight_is_clipped_to_a_tenth_and_ten_times_the_mean(make_scores):
    made = weights(make_scores, [0.0] + [8.0] * 39)
    assert made.weight[0] / made.weight[1] == pytest.approx(10 / 0.1)
    assert made.weight.mean() == pytest.approx(1)


def test_no_score_no_weight(make_scores):
    made = weights(make_scores, [1.0, np.nan])
    assert made.weight.tolist() == [1, 0] and made.reasons[made.reason[1]] == "undefined"
