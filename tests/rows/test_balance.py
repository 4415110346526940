import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.rows.balance import balanced_order, imbalance, slices_of
from npd_ascend.rows.bfd import best_fit_decreasing


def packed_costs(seed, samples, capacity=4096):
    rng = np.random.default_rng(seed)
    lengths = np.clip(350 * np.exp(0.9 * rng.standard_normal(samples)), 1, capacity).astype(np.int64)
    return best_fit_decreasing(lengths, capacity).sums(lengths**2)


@settings(max_examples=150)
@given(st.lists(st.integers(0, 1000), max_size=90), st.integers(1, 12), st.integers(0, 5))
def test_is_a_deterministic_permutation(costs, group, seed):
    order = balanced_order(np.array(costs, float), group, seed)
    assert sorted(order.tolist()) == list(range(len(costs)))
    assert np.array_equal(order, balanced_order(np.array(costs, float), group, seed))


@pytest.mark.parametrize("group", [16, 64, 128])
def test_imbalance_within_two_percent_where_a_shuffle_has_far_more(group):
    costs = packed_costs(0, 20_000)
    order = balanced_order(costs, group, 3)
    shuffled = np.random.default_rng(0).permutation(len(costs))
    ranks = slices_of(group)
    assert imbalance(costs[shuffled], group, ranks).mean > 0.3
    while ranks > 1:
        assert imbalance(costs[order], group, ranks).worst <= 0.02
        ranks //= 2


def test_rows_far_costlier_than_others_share_batches():
    rng = np.random.default_rng(0)
    lengths = np.clip(346 * np.exp(0.9 * rng.standard_normal(60_000)), 1, 16384).astype(np.int64)
    costs = best_fit_decreasing(lengths, 32768).sums(lengths**2)
    assert costs.max() > 8 * costs.mean()  # more than four rows, a slice, can have on average
    order = balanced_order(costs, 64, 0)
    made = imbalance(costs[order], 64, 16)
    assert made.mean <= 0.01 and made.worst <= 0.02
    assert sorted(order.tolist()) == list(range(len(costs)))


def test_few_rows_are_evened_out_by_exchange():
    costs = packed_costs(1, 600)  # some 75 rows: one batch of 64 and a remainder
    order = balanced_order(costs, 64, 0, slices=8)
    assert imbalance(costs[order], 64, 8).worst <= 0.02


def test_epochs_differ_in_batches_and_in_remainder():
    costs = packed_costs(2, 5000)
    one, two = (balanced_order(costs, 64, [7, epoch]) for epoch in (0, 1))
    together = [set(order[:64].tolist()) for order in (one, two)]
    assert len(together[0] & together[1]) < 40
    rest = len(costs) % 64
    assert rest and set(one[-rest:].tolist()) != set(two[-rest:].tolist())


def test_batches_mix_cheap_and_costly_rows():
    costs = packed_costs(3, 20_000)
    by_batch = costs[balanced_order(costs, 64, 0)][: len(costs) // 64 * 64].reshape(-1, 64)
    assert by_batch.mean(1).std() < 0.25 * costs.std()
    assert (by_batch.std(1) > 0.5 * costs.std()).all()


def test_imbalance_by_hand():
    costs = np.array([1, 3, 2, 2, 9, 9.0])  # the last two fill no batch
    assert imbalance(costs, 4, 2).worst == 0
    measured = imbalance(costs, 2, 2)
    assert measured.worst == pytest.approx(0.5) and measured.mean == pytest.approx((3 + 2 + 9) / (2 + 2 + 9) - 1)
    assert imbalance(costs, 8, 2).worst == 0


def test_slices():
    assert [slices_of(g) for g in (1, 4, 7, 8, 16, 24, 64, 1024)] == [1, 1, 1, 2, 4, 6, 16, 16]
    with pytest.raises(ValueError, match="3 slices do not divide"):
        balanced_order(np.ones(8), 8, 0, slices=3)
