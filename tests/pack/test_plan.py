import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.pack.plan import epoch_plan
from npd_ascend.rows.bfd import best_fit_decreasing

LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=80).map(lambda x: np.array(x, np.int64))


@settings(max_examples=200)
@given(LENGTHS, st.integers(1, 8), st.integers(0, 3), st.integers(0, 3))
def test_each_epoch_holds_every_sample_once_at_the_same_density(lengths, group, seed, epoch):
    bins = best_fit_decreasing(lengths, 24)
    plan = epoch_plan(bins, lengths, group, seed, epoch)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    assert sorted(plan.sums(lengths)) == sorted(bins.sums(lengths))
    assert sorted(plan.sums(lengths**2)) == sorted(bins.sums(lengths**2))
    again = epoch_plan(bins, lengths, group, seed, epoch)
    assert np.array_equal(plan.order, again.order) and np.array_equal(plan.offsets, again.offsets)


def test_epochs_and_seeds_differ_in_neighbours_and_order():
    lengths = np.random.default_rng(0).integers(1, 24, 600)
    bins = best_fit_decreasing(lengths, 24)
    plans = [epoch_plan(bins, lengths, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    rows = [{tuple(sorted(p[b].tolist())) for b in range(len(p))} for p in plans]
    for one in range(3):
        for two in range(one):
            assert len(rows[one] & rows[two]) < 0.3 * len(bins)
