"""Every position belongs to one slice, under the number that the cut row has."""

import numpy as np
import pytest

from npd_ascend.rows.slices import Slice

B, S = 3, 24


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_slices_share_the_positions(size):
    rows = np.random.default_rng(0).integers(0, 1000, (B, S))
    flat = np.random.default_rng(1).permutation(B * S)[:50]
    seen = []
    for rank in range(size):
        part = Slice(rank, size)
        own = part.cut(rows)
        assert own.shape == (B, S // size) and own.flags.c_contiguous
        mine, where = part.find(flat, S)
        np.testing.assert_array_equal(own.reshape(-1)[where], rows.reshape(-1)[flat[mine]])
        seen += mine.tolist()
    assert sorted(seen) == list(range(50))
    np.testing.assert_array_equal(np.concatenate([Slice(r, size).cut(rows) for r in range(size)], 1), rows)
