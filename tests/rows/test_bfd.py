import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.errors import UserError
from npd_ascend.rows.bfd import best_fit_decreasing, lower_bound

CASES = st.integers(1, 60).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=120))
)


def naive_bfd(lengths, capacity):
    """Textbook best-fit decreasing: contents of the bins as lists of lengths."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fits = [b for b in bins if sum(b) + length <= capacity]
        if fits:
            max(fits, key=sum).append(length)
        else:
            bins.append([length])
    return bins


@settings(max_examples=300)
@given(CASES)
def test_equals_naive_best_fit_decreasing(case):
    capacity, lengths = case
    packed = best_fit_decreasing(np.array(lengths, np.int64), capacity)
    contents = sorted(sorted(lengths[i] for i in packed[b]) for b in range(len(packed)))
    naive = naive_bfd(lengths, capacity)
    # Bins of equal load are interchangeable, so contents may be exchanged between them; loads may not.
    assert sorted(map(sum, contents)) == sorted(map(sum, naive))


@settings(max_examples=200)
@given(CASES)
def test_every_item_in_one_bin_and_no_bin_too_full(case):
    capacity, lengths = case
    lengths = np.array(lengths, np.int64)
    packed = best_fit_decreasing(lengths, capacity)
    assert sorted(packed.order.tolist()) == list(range(len(lengths)))
    loads = packed.sums(lengths)
    assert loads.sum() == lengths.sum() and (loads <= capacity).all() and (loads > 0).all()
    assert len(packed) >= lower_bound(lengths, capacity)
    for b in range(len(packed)):
        assert (np.diff(lengths[packed[b]]) <= 0).all()


def test_large_capacity_and_determinism():
    lengths = np.random.default_rng(1).integers(1, 200_000, 3000)
    one, two = (best_fit_decreasing(lengths, 200_000) for _ in range(2))
    assert np.array_equal(one.order, two.order) and np.array_equal(one.offsets, two.offsets)
    assert sorted(one.sums(lengths)) == sorted(map(sum, naive_bfd(lengths.tolist(), 200_000)))


def test_empty_and_out_of_range():
    assert len(best_fit_decreasing(np.empty(0, np.int64), 8)) == 0
    with pytest.raises(UserError, match="sample 1 has 9 tokens, a row holds 8"):
        best_fit_decreasing(np.array([3, 9]), 8)
    with pytest.raises(UserError, match="sample 1 has 0 tokens"):
        best_fit_decreasing(np.array([3, 0]), 8)
    with pytest.raises(IndexError):
        best_fit_decreasing(np.array([3]), 8)[1]


def test_lower_bound_counts_items_that_cannot_share():
    assert lower_bound(np.array([5, 5, 5]), 8) == 3
    assert lower_bound(np.array([4, 4, 4]), 8) == 2


def test_density_of_long_tailed_lengths():
    rng = np.random.default_rng(0)
    lengths = np.clip(350 * np.exp(0.9 * rng.standard_normal(20_000)), 1, 4096).astype(np.int64)
    rows = len(best_fit_decreasing(lengths, 4096))
    assert lengths.sum() / (rows * 4096) >= 0.999
    assert rows <= 1.001 * lower_bound(lengths, 4096)
