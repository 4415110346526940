"""What times the two top-k operators of an NPU, with the one that the CPU has."""

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.ops.numerics import timed_top_k  # noqa: E402

pytestmark = pytest.mark.mindspore


def test_top_k_is_timed_on_what_it_answers():
    seconds, values = timed_top_k(6, 40, 3, ascend=False, calls=2)
    x = np.random.default_rng(0).standard_normal((6, 40), np.float32)
    np.testing.assert_array_equal(values, -np.sort(-x, 1)[:, :3])
    assert 0 < seconds < 60
