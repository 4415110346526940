import numpy as np

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.decide import decide
from npd_ascend.select.registry import FILTERS


def test_keeps_a_fraction_whatever_the_scores_say(make_scores):
    nll = np.linspace(0.1, 4, 2000)
    found = FILTERS.find("random")
    made = decide(make_scores(teacher_cond=nll), found, SelectConfig(filter="random"))
    assert not found.needs and abs(made.keep.mean() - 0.962) < 1e-3
    assert abs(np.corrcoef(nll, made.keep)[0, 1]) < 0.05
    again = decide(make_scores(tokens=[5] * 2000), found, SelectConfig(filter="random"))
    np.testing.assert_array_equal(made.keep, again.keep)
    half = decide(make_scores(teacher_cond=nll), found, SelectConfig(filter="random", upper_quantile=0.5))
    assert abs(half.keep.mean() - 0.5) < 1e-3 and {half.reasons[r] for r in half.reason} == {"kept", "by chance"}
