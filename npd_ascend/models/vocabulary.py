"""Distributions over a vocabulary: without its padding, and of logits that are cut over the tensor-parallel ranks.

Cut, a rank has [R, V / size] of the logits. Each of those cells takes one collective, whatever the vocabulary: a few
numbers a row and rank are exchanged.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from npd_ascend.models.elementwise import log
from npd_ascend.models.kernels import Largest, on_ascend
from npd_ascend.models.parallel.collectives import ALONE, AllGather, ProcessGroup

_NEVER = -1e30
"""A logit without probability. Finite: 0 · -inf and -inf - -inf would be NaN, in a slice that is all padding too."""


class MaskPadding(nn.Cell):
    """Takes the ids at and beyond ``vocabulary`` out of logits: their probabilities, and so their gradients, are 0.

    Args:
        vocabulary: ids that count; None: all columns.
        group: ranks over which the logits are cut.
    """

    def __init__(self, vocabulary: int | None = None, group: ProcessGroup = ALONE):
        super().__init__()
        self.vocabulary, self.rank = vocabulary, group.rank
        # On the CPU a broadcast sum is slower and needs another [R, V]; Ascend has no native kernel for the other.
        self.add = ops.Add() if on_ascend() else ops.BiasAdd()

    def construct(self, logits: ms.Tensor) -> ms.Tensor:
        """logits [R, V / size] float32 -> the same shape; nothing is computed where no column is padding."""
        width = logits.shape[1]
        if self.vocabulary is None or self.vocabulary >= (self.rank + 1) * width:
            return logits
        ids = ops.arange(self.rank * width, (self.rank + 1) * width)
        return self.add(logits, (ids >= self.vocabulary).astype(ms.float32) * _NEVER)


class OwnIds(nn.Cell):
    """Token ids as columns of this rank's slice."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.rank = group.rank

    def construct(self, ids: ms.Tensor, width: int) -> tuple[ms.Tensor, ms.Tensor]:
        """ids, any shape -> column in 0..width - 1 (any, where the id is another rank's), and 1.0 where it is ours."""
        column = ids - self.rank * width
        mine = ops.logical_and(column >= 0, column < width).astype(ms.float32)
        return column.clip(0, width - 1), mine


class LogProbs(nn.Cell):
    """Log-sum-exp and chosen log-probs of rows of logits that are cut.

    With m_r, s_r the maximum and Σ exp(z - m_r) of rank r's slice: logZ = m + log Σ_r s_r exp(m_r - m), m = max m_r.
    """

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.own, self.gather = OwnIds(group), AllGather(group)

    def construct(self, logits: ms.Tensor, ids: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """logits [R, V / size] float32, ids [R, n] -> logZ [R, 1], log-probs [R, n]."""
        column, mine = self.own(ids, logits.shape[1])
        peak = logits.max(-1, keepdims=True)
        z = ops.exp(logits - peak).sum(-1, keepdims=True)
        chosen = ops.gather_elements(logits, 1, column) * mine
        parts = self.gather(ops.concat((peak, z, chosen), 1))
        highest = parts[:, :, :1].max(axis=0)
        logz = highest + log((parts[:, :, 1:2] * ops.exp(parts[:, :, :1] - highest)).sum(0))
        return logz, parts[:, :, 2:].sum(0) - logz


class Summary(nn.Cell):
    """What annotation keeps of rows of logits that are cut: see ``annotate.head.ChunkSummary``.

    The k best of all are among the k best of each slice.
    """

    def __init__(self, group: ProcessGroup, k: int):
        super().__init__()
        self.k, self.rank, self.size = k, group.rank, group.size
        self.own, self.gather = OwnIds(group), AllGather(group)
        self.top = Largest()

    def construct(self, logits: ms.Tensor, targets: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """logits [R, V / size] float32, targets [R] -> logz, sampled, entropy [R] (and log-probs, ids [R, k])."""
        rows, width = logits.shape
        column, mine = self.own(targets.reshape(-1, 1), width)
        peak = logits.max(-1, keepdims=True)
        shifted = logits - peak
        exp = ops.exp(shifted)
        columns: tuple[ms.Tensor, ...] = (
            peak,
            exp.sum(-1, keepdims=True),
            (exp * shifted).sum(-1, keepdims=True),
            ops.gather_elements(logits, 1, column) * mine,
        )
        count = min(self.k, width)
        if self.k:
            best, ids = self.top(logits, count)
            columns += (best, (ids + self.rank * width).astype(ms.float32))  # exact: ids lie below 2^24
        parts = self.gather(ops.concat(columns, 1))
        peaks = parts[:, :, 0]
        highest = peaks.max(axis=0)
        scale = ops.exp(peaks - highest)
        z = (parts[:, :, 1] * scale).sum(0)
        logz = highest + log(z)
        # Σ e^(l - m)(l - m) of all, from the same sum of each slice around its own maximum.
        moment = (scale * (parts[:, :, 2] + parts[:, :, 1] * (peaks - highest))).sum(0)
        entropy = ops.relu(log(z) - moment / z)
        sampled = parts[:, :, 3].sum(0) - logz
        if self.k == 0:
            return logz, sampled, entropy
        values = parts[:, :, 4 : 4 + count].transpose(1, 0, 2).reshape(rows, self.size * count)
        found = parts[:, :, 4 + count :].transpose(1, 0, 2).reshape(rows, self.size * count)
        best, at = self.top(values, self.k)
        return logz, sampled, entropy, best - logz.reshape(-1, 1), ops.gather_elements(found, 1, at).astype(ms.int32)
