import numpy as np
import pytest

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.decide import decide
from npd_ascend.select.metrics import ZONES
from npd_ascend.select.registry import FILTERS

# Δ = -0.25, 0, 0.5, 0.75, 1.0, undefined
TEACHER = [0.25, 0.5, 1.0, 1.25, 1.5, np.nan]


def reasons(make_scores, **settings):
    scores = make_scores(
        teacher_cond=TEACHER, teacher_uncond=[1.0] * 6, student_cond=[0.5] * 6, student_uncond=[1.0] * 6
    )
    made = decide(scores, FILTERS.find("delta_ifd"), SelectConfig(**settings))
    assert (made.keep == (made.reason == 0)).all()
    return [made.reasons[r] for r in made.reason], [ZONES[z] for z in made.zone], made


def test_the_paper_s_bounds(make_scores):
    why, zones, made = reasons(make_scores)
    assert why == ["degenerate", "kept", "kept", "kept", "disconnect", "undefined"]
    assert zones == ["degenerate", "proximal", "proximal", "proximal", "disconnect", "undefined"]
    assert (made.lower, made.upper) == (0.0, 0.8)


def test_one_side_alone(make_scores):
    assert reasons(make_scores, lower=None)[0] == ["kept"] * 4 + ["disconnect", "undefined"]
    assert reasons(make_scores, upper=None)[0] == ["degenerate"] + ["kept"] * 4 + ["undefined"]


def test_bounds_are_inclusive_and_move_the_zone(make_scores):
    why, zones, _ = reasons(make_scores, upper=0.5)
    assert why == ["degenerate", "kept", "kept", "disconnect", "disconnect", "undefined"]
    assert zones[3] == "disconnect"


def test_quantiles_over_defined_samples_leave_the_zones_alone(make_scores):
    why, zones, made = reasons(make_scores, lower_quantile=0.25, upper_quantile=0.75)
    assert (made.lower, made.upper) == (0.0, 0.75)
    assert why == ["degenerate", "kept", "kept", "kept", "disconnect", "undefined"]
    assert zones[4] == "disconnect" and made.zone_upper == 0.8


def test_same_model_keeps_everything(make_scores):
    nll = np.random.default_rng(0).uniform(0.1, 3, (2, 50))
    scores = make_scores(teacher_cond=nll[0], teacher_uncond=nll[1], student_cond=nll[0], student_uncond=nll[1])
    assert (scores.delta_ifd == 0).all()
    assert decide(scores, FILTERS.find("delta_ifd"), SelectConfig()).keep.all()


@pytest.mark.parametrize("form", ["loss_ratio", "ppl_ratio"])
def test_forms(make_scores, form):
    scores = make_scores(form=form, teacher_cond=[1.0], teacher_uncond=[2.0], student_cond=[1.0], student_uncond=[4.0])
    expected = 0.5 - 0.25 if form == "loss_ratio" else np.exp(-1) - np.exp(-3)
    assert scores.delta_ifd[0] == pytest.approx(expected)
