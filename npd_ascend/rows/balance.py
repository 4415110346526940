"""Order of rows: shuffled, and in every global batch the same attention cost for every data-parallel rank.

All rows hold the same number of positions, so ranks differ only in attention, which grows with the sum of squared
sample lengths of a row. A rank that got the long samples makes all others wait at the gradient exchange.

The order does not depend on how many ranks there will be (a run may be resumed on other hardware and must see the
same batches): a batch is made of equal *slices*, and any number of ranks that divides their number is balanced.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array

MAX_SLICES = 16
MIN_SLICE_ROWS = 4
_TOLERANCE = 0.005
_MAX_SWAPS = 200


@dataclass(frozen=True)
class Imbalance:
    """What waiting for the slowest rank costs, in the full batches of an order.

    Attributes:
        mean: sum over batches of the largest rank cost / sum of the mean rank cost - 1: share of time lost.
        worst: the same for the worst single batch.
    """

    mean: float
    worst: float


def slices_of(group: int) -> int:
    """Slices that a batch of ``group`` rows is balanced over.

    The largest divisor up to 16 (devices of the largest node) that leaves 4 rows a slice: with fewer rows equal
    costs would only be had by collecting similar rows in one batch, which is no shuffle any more.
    """
    return max(d for d in range(1, MAX_SLICES + 1) if group % d == 0 and (d == 1 or group // d >= MIN_SLICE_ROWS))


def balanced_order(costs: Array, group: int, seed: int | list[int], slices: int | None = None) -> Array:
    """A shuffled order of rows whose batches are balanced.

    The few rows that cost more than a whole average slice are put together in batches of their own. All others are
    dealt at random into slices, one from each cost class, the class with the widest spread last and so that it
    evens out the sums; slices of equal sum then make a batch, and what is left is mended by exchanging rows.
    Batches, slices in a batch and rows in a slice stand in random order. A remainder that fills no batch, chosen
    at random, comes last.

    Args:
        costs: [R] attention cost of each row, non-negative.
        group: rows of a global batch; consecutive ``group`` rows of the result are a batch.
        seed: of this epoch's shuffle; a list of integers is hashed into one.
        slices: consecutive equal parts of a batch that get equal cost; None: ``slices_of(group)``.

    Returns:
        [R] int64, a permutation of the rows.

    Raises:
        ValueError: ``slices`` does not divide ``group``.
    """
    slices = slices_of(group) if slices is None else slices
    if slices < 1 or group % slices:
        raise ValueError(f"{slices} slices do not divide a group of {group} rows")
    costs = np.asarray(costs, np.float64)
    size = group // slices
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(costs))
    groups = len(costs) // group
    full, rest = shuffled[: groups * group], shuffled[groups * group :]
    if not groups:
        return rest
    full = full[np.argsort(costs[full], kind="stable")]
    heavy, full = _concentrate(full, costs, slices, size)
    if len(full):
        dealt = _deal(full, costs, len(full) // size, size, rng)
        by_sum = np.argsort(costs[dealt].sum(1), kind="stable")
        heavy.append(dealt[by_sum].reshape(-1, slices, size))
    batches = np.concatenate(heavy)
    _even_out(batches, costs)
    batches = rng.permuted(batches, axis=2)
    places = rng.permuted(np.broadcast_to(np.arange(slices), (groups, slices)), axis=1)
    batches = np.take_along_axis(batches, places[:, :, None], axis=1)
    return np.concatenate([batches[rng.permutation(groups)].reshape(-1), rest])


def imbalance(costs: Array, group: int, ranks: int) -> Imbalance:
    """Imbalance of rows in training order when each batch is cut into ``ranks`` consecutive equal parts.

    Args:
        costs: [R] attention cost in training order.
        group: rows of a global batch.
        ranks: data-parallel ranks, a divisor of ``group``.
    """
    groups = len(costs) // group
    of_rank = np.asarray(costs[: groups * group], np.float64).reshape(groups, ranks, group // ranks).sum(2)
    mean = of_rank.mean(1)
    if not groups or not mean.all():
        return Imbalance(0.0, 0.0)
    most = of_rank.max(1)
    return Imbalance(float(most.sum() / mean.sum() - 1), float((most / mean).max() - 1))


def _concentrate(rows: Array, costs: Array, slices: int, size: int) -> tuple[list[Array], Array]:
    """Makes batches of the rows that are so costly that slices of average rows cannot match them.

    While the costliest row, with the cheapest ones beside it, costs more than an average slice: a batch in which
    every slice has one of the costliest rows and is filled up to the same sum.

    Args:
        rows: a whole number of batches of row numbers, cheapest first.
        costs: [R].
        slices: slices of a batch.
        size: rows of a slice.

    Returns:
        Batches, each [1, slices, size], and the rows that are left, cheapest first.
    """
    left, by_cost = rows.tolist(), costs[rows].tolist()
    total, taken = sum(by_cost), []
    while left:
        target = by_cost[-1] + sum(by_cost[: size - 1])
        if target * len(left) <= total * size:
            break
        cheapest = by_cost[0]
        batch = [[left.pop()] for _ in range(slices)]
        sums = [by_cost.pop() for _ in range(slices)]
        for more in range(size - 2, -1, -1):  # rows that a slice gets after this one
            for s in range(slices):
                wanted = target - sums[s] - more * cheapest
                at = bisect_left(by_cost, wanted)
                if at == len(by_cost) or (at and wanted - by_cost[at - 1] < by_cost[at] - wanted):
                    at -= 1
                batch[s].append(left.pop(at))
                sums[s] += by_cost.pop(at)
        total -= sum(sums)
        taken.append(np.array(batch)[None])
    return taken, np.array(left, np.int64)


def _deal(rows: Array, costs: Array, n: int, size: int, rng: np.random.Generator) -> Array:
    """``n`` slices with one row from each of ``size`` cost classes and sums as equal as these allow.

    Args:
        rows: [n * size] row numbers, cheapest first.
        costs: [R].
        n: slices.
        size: rows of a slice.
        rng: deals all classes but the last.

    Returns:
        [n, size] row numbers.
    """
    classes = rows.reshape(size, n)
    if size == 1:
        return classes.T
    spread = costs[classes[:, -1]] - costs[classes[:, 0]]
    classes = classes[np.argsort(spread, kind="stable")]
    dealt = rng.permuted(classes[:-1], axis=1)
    # Largest sum so far gets the cheapest row of the last class.
    by_sum = np.argsort(-costs[dealt].sum(0), kind="stable")
    batches: Array = np.concatenate([dealt[:, by_sum], classes[-1:]]).T
    return batches


def _even_out(batches: Array, costs: Array) -> None:
    """Exchanges rows between the costliest slice of a batch and others until it is not costliest by much, in place.

    Args:
        batches: [groups, slices, rows of a slice] row numbers.
        costs: [R].
    """
    sums = costs[batches].sum(2)
    mean = sums.mean(1)
    for g in np.flatnonzero(sums.max(1) > mean * (1 + _TOLERANCE)):
        batch, total = batches[g], sums[g]
        for _ in range(_MAX_SWAPS):
            high = int(total.argmax())
            if total[high] <= mean[g] * (1 + _TOLERANCE):
                break
            # [rows of high, slices, rows]: cost that leaves `high` when its row i goes for row j of slice s.
            moved = costs[batch[high]][:, None, None] - costs[batch][None]
            after = np.maximum(total[high] - moved, total[None, :, None] + moved)
            after[:, high] = np.inf
            i, s, j = np.unravel_index(after.argmin(), after.shape)
            if after[i, s, j] >= total[high]:
                break
            batch[high, i], batch[s, j] = batch[s, j], batch[high, i]
            total[high] -= moved[i, s, j]
            total[s] += moved[i, s, j]
