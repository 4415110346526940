import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend.select.metrics import ZONES, delta_ifd, ifd, zone_of

NLL = st.one_of(st.floats(0, 20), st.sampled_from([0.0, 1e-7, 1e-6, math.nan, math.inf]))


def naive_ifd(cond, uncond, form):
    if not math.isfinite(cond) or not math.isfinite(uncond) or uncond < 1e-6:
        return math.nan
    return cond / uncond if form == "loss_ratio" else math.exp(cond) / math.exp(uncond)


@given(st.lists(st.tuples(NLL, NLL), max_size=20), st.sampled_from(["loss_ratio", "ppl_ratio"]))
def test_ifd_equals_sample_by_sample(pairs, form):
    got = ifd(np.array([c for c, _ in pairs], float), np.array([u for _, u in pairs], float), form)
    np.testing.assert_allclose(got, [naive_ifd(c, u, form) for c, u in pairs], rtol=1e-12)


def test_delta_is_teacher_minus_student_and_zero_for_the_same_model():
    teacher, student = np.array([0.9, np.nan, 0.5, np.inf]), np.array([0.4, 0.3, np.nan, 1.0])
    np.testing.assert_array_equal(delta_ifd(teacher, student), [0.5, np.nan, np.nan, np.nan])
    assert (delta_ifd(student[:2], student[:2]) == 0).all()


def test_zones_with_their_edges():
    delta = np.array([-1e-9, 0.0, 0.8, np.nextafter(0.8, 1), np.nan])
    names = [ZONES[z] for z in zone_of(delta, 0.8)]
    assert names == ["degenerate", "proximal", "proximal", "disconnect", "undefined"]


def test_unknown_form():
    with pytest.raises(ValueError, match="unknown form"):
        ifd(np.ones(1), np.ones(1), "ratio")
