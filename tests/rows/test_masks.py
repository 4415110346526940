"""Masked spans against a loop over tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend.rows.masks import written
from npd_ascend.store.ragged import Ragged


def ragged(lists):
    return Ragged(np.array([x for of in lists for x in of], np.int32), np.cumsum([0, *map(len, lists)]))


@given(st.data())
def test_spans_hide_what_lies_in_them(data):
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    spans = []
    for n in lengths:
        edges = sorted(data.draw(st.sets(st.integers(0, n), max_size=6)))
        spans.append(edges[: len(edges) // 2 * 2])
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8)), np.int64)
    counts = np.array([data.draw(st.integers(0, lengths[r])) for r in rows], np.int64)
    naive = [
        not any(a <= t < b for a, b in zip(spans[r][::2], spans[r][1::2], strict=True))
        for r, n in zip(rows, counts, strict=True)
        for t in range(n)
    ]
    assert written(ragged(spans), rows, counts).tolist() == naive


@pytest.mark.parametrize("counts", [[], [3, 0, 2]])
def test_without_spans_all_is_written(counts):
    found = written(ragged([[]] * 3), np.arange(len(counts)), np.array(counts, np.int64))
    assert found.tolist() == [True] * sum(counts)
