import numpy as np

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.decide import decide
from npd_ascend.select.registry import FILTERS


def test_drops_the_fifth_least_likely_under_the_teacher(make_scores):
    nll = np.random.default_rng(0).permutation(np.linspace(0.1, 4, 50))
    made = decide(make_scores(teacher_cond=nll), FILTERS.find("fire"), SelectConfig(filter="fire"))
    assert set(np.flatnonzero(~made.keep)) == set(np.argsort(nll)[-10:])
    assert {made.reasons[r] for r in made.reason} == {"kept", "unlikely"}


def test_another_share(make_scores):
    nll = np.linspace(0.1, 4, 50)
    made = decide(make_scores(teacher_cond=nll), FILTERS.find("fire"), SelectConfig(filter="fire", lower_quantile=0.5))
    assert made.keep.sum() == 25
