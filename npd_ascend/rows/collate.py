"""Packed rows as the arrays that the network reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.store.ragged import concat_ranges


@dataclass(frozen=True)
class RowBatch:
    """``B`` rows of ``S`` positions; samples stand one behind the other from the left, the rest is padding.

    Attributes:
        input_ids: [B, S] int32, the pad id in padding.
        position_ids: [B, S] int32, 0.. within each sample, 0 in padding.
        segment_ids: [B, S] int32, number of the sample in its row, -1 in padding.
        starts: [n] int64, flat position ``b * S + offset`` of the first token of each sample, row by row.
        lengths: [n] int64, tokens of each sample.
        longest: no sample is longer. Batches that share a bound share a compiled graph, so it may be that of others.
    """

    input_ids: Array
    position_ids: Array
    segment_ids: Array
    starts: Array
    lengths: Array
    longest: int

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.lengths.sum())


def collate(
    rows: Sequence[Sequence[Array]], row_length: int, pad_id: int, batch: int, longest: int | None = None
) -> RowBatch:
    """Token arrays of samples into fixed arrays; missing rows are all padding.

    Args:
        rows: for each row its samples, each [length] of integers.
        row_length: S.
        pad_id: token id that fills padding.
        batch: B, at least ``len(rows)``.
        longest: of ``RowBatch``; None: the tokens of the longest sample here.

    Raises:
        ValueError: more rows than ``batch``, a row with more tokens than ``row_length``, a sample with more than
            ``longest``.
    """
    samples = [np.asarray(s) for row in rows for s in row]
    lengths = np.fromiter(map(len, samples), np.int64, len(samples))
    in_row = np.fromiter(map(len, rows), np.int64, len(rows))
    tokens = np.concatenate(samples) if samples else np.empty(0, np.int32)
    return collate_flat(tokens, lengths, in_row, row_length, pad_id, batch, longest)


def collate_flat(
    tokens: Array, lengths: Array, in_row: Array, row_length: int, pad_id: int, batch: int, longest: int | None = None
) -> RowBatch:
    """``collate`` for samples that stand one behind the other in one array.

    Args:
        tokens: [sum of lengths] integers.
        lengths: [n] int64, tokens of each sample.
        in_row: [rows] int64, samples of each row.
        row_length: S.
        pad_id: token id that fills padding.
        batch: B, at least ``len(in_row)``.
        longest: as there.

    Raises:
        ValueError: as there.
    """
    found = int(lengths.max(initial=1))
    if longest is not None and found > longest:
        raise ValueError(f"a sample has {found} tokens, {longest} were announced")
    if len(in_row) > batch:
        raise ValueError(f"{len(in_row)} rows do not go into a batch of {batch}")
    row = np.repeat(np.arange(len(in_row)), in_row)
    before = _exclusive_cumsum(lengths)
    row_first = _exclusive_cumsum(in_row)
    row_before = np.append(before, lengths.sum())[row_first]
    offset = before - row_before[row]
    over = offset + lengths > row_length
    if over.any():
        b = int(row[over][0])
        raise ValueError(f"row {b} has {int(lengths[row == b].sum())} tokens, {row_length} fit")

    input_ids = np.full(batch * row_length, pad_id, np.int32)
    position_ids = np.zeros(batch * row_length, np.int32)
    segment_ids = np.full(batch * row_length, -1, np.int32)
    starts = row * row_length + offset
    if len(lengths):
        position = concat_ranges(np.zeros_like(lengths), lengths)
        flat = position + np.repeat(starts, lengths)
        input_ids[flat] = tokens
        position_ids[flat] = position
        segment_ids[flat] = np.repeat(np.arange(len(lengths)) - row_first[row], lengths)
    shape = (batch, row_length)
    return RowBatch(
        input_ids.reshape(shape),
        position_ids.reshape(shape),
        segment_ids.reshape(shape),
        starts,
        lengths,
        longest or found,
    )


def segment_ends(segment_ids: Array, places: int) -> Array:
    """Cumulative ends of the segments over the B·S positions; the end of a row always ends one, and its padding is one.

    Args:
        segment_ids: [B, S] of ``RowBatch``.
        places: length of the result.

    Returns:
        [places] int64, ascending; unused places repeat B·S, which MindFormers' own packed data does as well.

    Raises:
        ValueError: more segments than places.
    """
    last = np.ones((len(segment_ids), 1), bool)
    ends = np.flatnonzero(np.concatenate((segment_ids[:, 1:] != segment_ids[:, :-1], last), 1)) + 1
    if len(ends) > places:
        raise ValueError(f"{len(ends)} segments, {places} can be distinguished")
    return np.pad(ends.astype(np.int64), (0, places - len(ends)), constant_values=segment_ids.size)


def response_positions(starts: Array, prompt_tokens: Array, response_tokens: Array) -> Array:
    """Flat positions whose logits predict the response tokens: ``start + prompt + t - 1``, t = 0..response-1.

    Args:
        starts: [n] flat position of each sample's first token (``RowBatch.starts``).
        prompt_tokens: [n] tokens of each prompt, at least 1 where there is a response.
        response_tokens: [n] tokens of each response.

    Returns:
        [sum(response_tokens)] int64, sample by sample.
    """
    return concat_ranges(np.asarray(starts, np.int64) + np.asarray(prompt_tokens, np.int64) - 1, response_tokens)


def _exclusive_cumsum(values: Array) -> Array:
    before: Array = np.cumsum(values) - values
    return before
