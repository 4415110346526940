"""Global best-fit decreasing: samples of known length into the fewest rows of one capacity.

Lengths are integers bounded by the capacity, hence many samples share a length and many rows the same free
space. Rows of equal free space are interchangeable; therefore a whole run of equal lengths is placed into a
whole range of equal rows in one step, and the number of steps is that of distinct situations, not of samples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError


@dataclass(frozen=True)
class Bins:
    """An assignment of ``N`` items to ``B`` bins.

    Attributes:
        order: [N] int64, item numbers bin by bin.
        offsets: [B + 1] int64; bin ``b`` holds ``order[offsets[b]:offsets[b + 1]]``.
    """

    order: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> Array:
        """Items of bin ``b``, longest first."""
        if not 0 <= b < len(self):
            raise IndexError(b)
        return self.order[self.offsets[b] : self.offsets[b + 1]]

    def sums(self, values: Array) -> Array:
        """[B] sum of ``values`` [N] over each bin: of lengths its load, of squared lengths its cost."""
        total = np.concatenate([np.zeros(1, values.dtype), np.cumsum(values[self.order])])
        found: Array = total[self.offsets[1:]] - total[self.offsets[:-1]]
        return found


def best_fit_decreasing(lengths: Array, capacity: int) -> Bins:
    """Packs by best-fit decreasing (Johnson 1973): longest first, each into the fullest bin that takes it.

    Deterministic; items of equal length are placed in the order in which they are given.

    Args:
        lengths: [N] integers, 1..capacity.
        capacity: what a bin holds.

    Returns:
        The bins; inside a bin the longest item is first. Empty for N = 0.

    Raises:
        UserError: a length is below 1 or above the capacity.
    """
    lengths = np.asarray(lengths, np.int64)
    n = len(lengths)
    if n == 0:
        return Bins(np.empty(0, np.int64), np.zeros(1, np.int64))
    if lengths.max() > capacity:
        raise UserError(
            f"sample {int(lengths.argmax())} has {int(lengths.max())} tokens, a row holds "
            f"{capacity}; raise row_length or shorten the sample"
        )
    if lengths.min() < 1:
        raise UserError(f"sample {int(lengths.argmin())} has {int(lengths.min())} tokens; there is nothing to pack")
    # numpy sorts 16-bit keys by radix, several times faster than 64-bit ones.
    key = capacity - lengths
    sorted_items = np.argsort(key.astype(np.uint16) if capacity <= 0xFFFF else key, kind="stable")
    by_length = np.bincount(lengths, minlength=capacity + 1)
    runs = np.flatnonzero(by_length)[::-1]
    first_bin, bins, each, count = _place(runs.tolist(), by_length[runs].tolist(), capacity)
    # A placement gave `each` items to each of `bins` bins: its item j is in bin first_bin + j // each.
    start = np.concatenate([[0], np.cumsum(bins * each)])[:-1]
    assert start[-1] + bins[-1] * each[-1] == n
    within = np.arange(n) - np.repeat(start, bins * each)
    bin_of_sorted = np.repeat(first_bin, bins * each) + within // np.repeat(each, bins * each)
    by_bin = np.argsort(bin_of_sorted, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bin_of_sorted, minlength=count))])
    return Bins(sorted_items[by_bin], offsets.astype(np.int64))


def lower_bound(lengths: Array, capacity: int) -> int:
    """Rows that any packing needs: ceil(tokens / capacity), and one for each item over half the capacity."""
    lengths = np.asarray(lengths, np.int64)
    return max(-(-int(lengths.sum()) // capacity), int((2 * lengths > capacity).sum()))


def _place(lengths: list[int], counts: list[int], capacity: int) -> tuple[Array, Array, Array, int]:
    """Runs of equal lengths, longest first, into ranges of equal bins.

    Returns placements (first bin, number of bins, items in each of them), in the order of items, and how many
    bins were opened.
    """
    first: list[int] = []
    bins: list[int] = []
    each: list[int] = []
    levels: list[int] = []  # free spaces that occur, ascending
    ranges: list[list[tuple[int, int]] | None] = [None] * (capacity + 1)  # free space -> (first bin, bins)
    opened = 0

    def keep(free: int, start: int, size: int) -> None:
        if free:
            held = ranges[free]
            if held is None:
                ranges[free] = [(start, size)]
                insort(levels, free)
            else:
                held.append((start, size))

    def fill(free: int, start: int, size: int, length: int, left: int) -> int:
        """Puts ``left`` items into ``size`` bins with ``free`` each; returns how many did not fit."""
        fit = free // length
        full = min(size, left // fit)
        if full:
            first.append(start)
            bins.append(full)
            each.append(fit)
            keep(free - fit * length, start, full)
            left -= full * fit
        if full < size and left:  # fewer than `fit` remain: one bin takes them all
            first.append(start + full)
            bins.append(1)
            each.append(left)
            keep(free - left * length, start + full, 1)
            full += 1
            left = 0
        if full < size:
            keep(free, start + full, size - full)
        return left

    for length, left in zip(lengths, counts, strict=True):
        while left:
            # The fullest bin that takes the item; having taken one, it stays the fullest while another fits.
            at = bisect_left(levels, length)
            if at == len(levels):
                size = -(-left // (capacity // length))
                opened, start = opened + size, opened
                left = fill(capacity, start, size, length, left)
                continue
            free = levels[at]
            held = ranges[free]
            assert held is not None
            start, size = held.pop()
            if not held:
                ranges[free] = None
                del levels[at]
            left = fill(free, start, size, length, left)
    return np.asarray(first), np.asarray(bins), np.asarray(each), opened
