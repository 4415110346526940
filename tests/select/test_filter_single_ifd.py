import numpy as np
import pytest

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.decide import decide
from npd_ascend.select.registry import FILTERS


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_drops_ifd_above_one_of_its_own_model_only(make_scores, model):
    other = "student" if model == "teacher" else "teacher"
    scores = make_scores(
        **{
            f"{model}_cond": [0.5, 1.0, 1.5, 1.0],
            f"{model}_uncond": [1.0, 1.0, 1.0, 1e-9],
            f"{other}_cond": [np.nan] * 4,
        }
    )
    made = decide(scores, FILTERS.find(f"{model}_ifd"), SelectConfig(filter=f"{model}_ifd"))
    assert [made.reasons[r] for r in made.reason] == ["kept", "kept", "above", "undefined"]
    assert (made.lower, made.upper) == (None, 1.0)


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_configured_bounds(make_scores, model):
    scores = make_scores(**{f"{model}_cond": [0.2, 0.5, 0.7, 0.9], f"{model}_uncond": [1.0] * 4})
    settings = SelectConfig(filter=f"{model}_ifd", lower=0.3, upper=0.6)
    made = decide(scores, FILTERS.find(f"{model}_ifd"), settings)
    assert [made.reasons[r] for r in made.reason] == ["below", "kept", "above", "above"]
    settings = SelectConfig(filter=f"{model}_ifd", upper=None)
    assert decide(scores, FILTERS.find(f"{model}_ifd"), settings).keep.all()
