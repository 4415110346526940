"""Rows of which several processes hold a run of positions each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array


@dataclass(frozen=True)
class Slice:
    """Part ``rank`` of ``size`` equal runs of the positions of every row."""

    rank: int = 0
    size: int = 1

    def cut(self, rows: Array) -> Array:
        """[B, S] -> [B, S / size]."""
        own = rows.shape[1] // self.size
        return np.ascontiguousarray(rows[:, self.rank * own : (self.rank + 1) * own])

    def find(self, flat: Array, row_length: int) -> tuple[Array, Array]:
        """Which flat positions ``b * S + s`` lie in the slice, and where in it.

        Args:
            flat: [n] int64.
            row_length: S.

        Returns:
            Indices into ``flat``, ascending, and ``b * (S / size) + s'`` for each of them: both [m] int64.
        """
        own = row_length // self.size
        row, position = np.divmod(flat, row_length)
        mine = np.flatnonzero(position // own == self.rank)
        return mine, row[mine] * own + position[mine] - self.rank * own
