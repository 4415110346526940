"""Samples of a live step into micro-batches of few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.study import LiveConfig
from npd_ascend.errors import UserError
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.rows.collate import RowBatch, collate, response_positions
from npd_ascend.study.method import Sample


@dataclass(frozen=True)
class Layout:
    """Shapes that the micro-batches of an arm have.

    Attributes:
        rows: rows of a micro-batch.
        lengths: row lengths, ascending; a batch takes the smallest that holds its longest sample.
        packed: several samples share a row.
        prompt: shortest prompt, which bounds the response tokens of a row.
        pad: id that fills rows.
        longest: tokens that a prompt and its answer may have.
    """

    rows: int
    lengths: tuple[int, ...]
    packed: bool
    prompt: int
    pad: int
    longest: int

    @classmethod
    def of(
        cls,
        live: LiveConfig,
        samples: int,
        row_length: int,
        micro_batch: int,
        prompts: Sequence[Array],
        longest: int,
        pad: int,
    ) -> Layout:
        """The layout of an arm.

        Args:
            live: its settings.
            samples: of a step.
            row_length, micro_batch: of packed rows.
            prompts: of the arm.
            longest: tokens that a prompt and its answer may have.
            pad: id that fills rows.

        Raises:
            UserError: no row holds the longest sample.
        """
        shortest = min(map(len, prompts))
        if live.layout == "packed":
            if longest > row_length:
                raise UserError(f"a prompt and answer reach {longest} tokens but pack.row_length is {row_length}")
            return cls(live.rows or micro_batch, (row_length,), True, shortest, pad, longest)
        whole = -(-longest // 8) * 8
        lengths = sorted({b for b in live.buckets if b < whole} | {whole})
        return cls(live.rows or samples, tuple(lengths), False, shortest, pad, longest)

    def head_rows(self, length: int) -> int:
        """Response positions that a micro-batch of this row length can have, as a multiple of 64."""
        room = self.rows * (length if self.packed else length - self.prompt)
        return -(-room // 64) * 64

    def parts(self, samples: Sequence[Sample]) -> Iterator[Part]:
        """Micro-batches that hold all samples."""
        head = np.fromiter((len(s.prompt) for s in samples), np.int64, len(samples))
        body = np.fromiter((len(s.response) for s in samples), np.int64, len(samples))
        if self.packed:
            bins = best_fit_decreasing(head + body, self.lengths[0])
            rows = [bins[b].tolist() for b in range(len(bins))]
        else:
            rows = [[i] for i in range(len(samples))]
        length = (
            next(x for x in self.lengths if x >= (head + body).max(initial=0)) if not self.packed else (self.lengths[0])
        )
        for first in range(0, len(rows), self.rows):
            mine = rows[first : first + self.rows]
            which = np.array([i for row in mine for i in row])
            batch = collate(
                [[np.concatenate((samples[i].prompt, samples[i].response)) for i in row] for row in mine],
                length,
                self.pad,
                self.rows,
                self.longest,
            )
            at = response_positions(batch.starts, head[which], body[which])
            positions = np.zeros(self.head_rows(length), np.int32)
            positions[: len(at)] = at
            yield Part(which, batch, positions, len(at))

    def empty(self, length: int) -> Part:
        """A micro-batch without samples, to compile with."""
        batch = collate([], length, self.pad, self.rows, self.longest)
        return Part(np.empty(0, np.int64), batch, np.zeros(self.head_rows(length), np.int32), 0)


@dataclass(frozen=True)
class Part:
    """One micro-batch before its teacher is asked.

    Attributes:
        samples: [n] numbers of its samples, in the order in which their tokens stand.
        rows: inputs.
        positions: [N] int32, flat positions that predict response tokens; 0 beyond ``tokens``.
        tokens: response tokens.
    """

    samples: Array
    rows: RowBatch
    positions: Array
    tokens: int
