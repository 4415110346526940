"""Which samples share a forward pass, and where their response tokens are predicted in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.rows.collate import RowBatch, collate, response_positions


@dataclass(frozen=True)
class PrefillBatch:
    """One forward pass of fixed shape.

    Attributes:
        samples: [n] numbers of the samples in it, in the order in which they stand.
        rows: their tokens.
        at: [T] flat positions whose logits predict the response tokens, sample by sample.
        targets: [T] int32, those tokens.
        ends: [n] int64, where in ``at`` each sample's tokens end.
    """

    samples: Array
    rows: RowBatch
    at: Array
    targets: Array
    ends: Array

    def spans(self) -> Iterator[tuple[int, slice]]:
        """(number of a sample, its part of ``at``)."""
        start = 0
        for sample, end in zip(self.samples.tolist(), self.ends.tolist(), strict=True):
            yield sample, slice(start, end)
            start = end


def prefill_batches(
    contexts: Sequence[Array], responses: Sequence[Array], row_length: int, batch: int, pad_id: int
) -> Iterator[PrefillBatch]:
    """Packs samples into passes of ``batch`` rows; rows depend on the arguments alone.

    Args:
        contexts: token ids before each response, at least one each.
        responses: token ids to be predicted; samples with none are in no pass.
        row_length: positions a row.
        batch: rows a pass.
        pad_id: token id that fills padding.

    Raises:
        ValueError: a sample is longer than a row.
    """
    head = np.fromiter(map(len, contexts), np.int64, len(contexts))
    body = np.fromiter(map(len, responses), np.int64, len(responses))
    scored = np.flatnonzero(body)
    # The last token predicts nothing that is asked for, so it takes no place in a row.
    tokens = head[scored] + body[scored] - 1
    longest = int(tokens.max(initial=1))
    bins = best_fit_decreasing(tokens, row_length)
    for first in range(0, len(bins), batch):
        rows = [scored[bins[b]] for b in range(first, min(first + batch, len(bins)))]
        samples = np.concatenate(rows)
        packed = collate(
            [[np.concatenate([contexts[i], responses[i][:-1]]) for i in row] for row in rows],
            row_length,
            pad_id,
            batch,
            longest,
        )
        yield PrefillBatch(
            samples,
            packed,
            response_positions(packed.starts, head[samples], body[samples]),
            np.concatenate([responses[i] for i in samples]).astype(np.int32, copy=False),
            np.cumsum(body[samples]),
        )
