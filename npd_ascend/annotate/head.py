"""The output head in chunks of rows: [rows, V] logits exist for one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from npd_ascend.annotate.distribution import summarise
from npd_ascend.arrays import Array
from npd_ascend.models.elementwise import log
from npd_ascend.models.kernels import Largest, TakeRows
from npd_ascend.models.parallel.collectives import ALONE, ProcessGroup
from npd_ascend.models.vocabulary import MaskPadding, Summary
from npd_ascend.store.topk_codec import TopK


class ChunkLogits(nn.Cell):
    """Logits of chosen positions."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.take = ops.MatMul(transpose_b=True), TakeRows()

    def construct(self, hidden: ms.Tensor, positions: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
        """hidden [N, H], positions [R] int32, weight [V, H] -> [R, V] float32."""
        rows = self.take(hidden, positions)
        return self.product(rows, weight.astype(rows.dtype)).astype(ms.float32)


class ChunkSummary(nn.Cell):
    """``distribution.summarise`` inside the graph, for devices whose logits should not travel to the host, and for
    heads that are cut over processes."""

    def __init__(self, k: int, group: ProcessGroup = ALONE, vocabulary: int | None = None):
        super().__init__()
        self.k = k
        self.cut = group.size > 1
        self.summary = Summary(group, k)
        self.logits, self.mask = ChunkLogits(), MaskPadding(vocabulary, group)
        self.top = Largest()

    def construct(
        self, hidden: ms.Tensor, positions: ms.Tensor, weight: ms.Tensor, targets: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        """As ``ChunkLogits`` with targets [R] int32 -> logz, sampled, entropy [R] (and log-probs, ids [R, k])."""
        logits = self.mask(self.logits(hidden, positions, weight))
        if self.cut:
            return self.summary(logits, targets)
        peak = logits.max(-1, keepdims=True)
        shifted = logits - peak
        exp = ops.exp(shifted)
        z = exp.sum(-1)
        log_z = log(z)
        entropy = ops.relu(log_z - (exp * shifted).sum(-1) / z)
        sampled = ops.gather_elements(shifted, 1, targets.reshape(-1, 1)).reshape(-1) - log_z
        logz = peak.reshape(-1) + log_z
        if self.k == 0:
            return logz, sampled, entropy
        best, ids = self.top(shifted, self.k)
        return logz, sampled, entropy, best - log_z.reshape(-1, 1), ids


class ChunkedHead:
    """Annotates chosen positions of a forward pass.

    Args:
        weight: output projection [V, H], or this rank's rows of it.
        chunk_rows: positions whose logits stand in memory at once.
        on_host: summarise in numpy (CPU) rather than inside the graph (Ascend); not for a head that is cut.
        group: ranks over which the head is cut; all must call together.
        vocabulary: ids that count, those beyond have no probability; None: all.
        run: calls a cell; may compile it first.
    """

    def __init__(
        self,
        weight: ms.Parameter,
        chunk_rows: int,
        *,
        on_host: bool,
        group: ProcessGroup = ALONE,
        vocabulary: int | None = None,
        run: Callable[..., Any] = lambda cell, *inputs: cell(*inputs),
    ):
        self._vocabulary = vocabulary
        self._weight, self._rows = weight, chunk_rows
        self._on_host, self._group = on_host and group.size == 1, group
        self._run = run
        self._cells: dict[int, Any] = {}

    def __call__(self, hidden: ms.Tensor, positions: Array, targets: Array, k: int) -> TopK:
        """Annotation of the tokens ``targets`` [n], predicted at ``positions`` [n] of ``hidden`` [N, H]."""
        # Two static shapes: whole chunks, and quarters for what is left, so that little is computed in vain.
        quarter, done, parts = -(-self._rows // 4), 0, []
        while done < len(positions):
            size = self._rows if len(positions) - done > 3 * quarter else quarter
            part = slice(done, done + size)
            parts.append(self._chunk(hidden, positions[part], targets[part], size, k))
            done += size
        return concatenate(parts, k)

    def _chunk(self, hidden: ms.Tensor, positions: Array, targets: Array, size: int, k: int) -> TopK:
        n = len(positions)
        padded = np.zeros((2, size), np.int32)
        padded[0, :n], padded[1, :n] = positions, targets
        if self._on_host:
            cell = self._cells.setdefault(0, ChunkLogits())
            logits = self._run(cell, hidden, ms.Tensor(padded[0]), self._weight).asnumpy()
            return summarise(logits[:n, : self._vocabulary], targets, k)
        cell = self._cells.get(k) or self._cells.setdefault(k, ChunkSummary(k, self._group, self._vocabulary))
        logz, sampled, entropy, *top = (
            x.asnumpy()[:n] for x in cell(hidden, ms.Tensor(padded[0]), self._weight, ms.Tensor(padded[1]))
        )
        logprobs, ids = top if k else (np.empty((n, 0), np.float32), np.empty((n, 0), np.int32))
        return TopK(ids.astype(np.int32), logprobs, logz, sampled, entropy)


def concatenate(parts: list[TopK], k: int) -> TopK:
    """Annotations one behind the other; of no parts an empty one with ``k`` columns."""
    if not parts:
        nothing = np.empty(0, np.float32)
        return TopK(np.empty((0, k), np.int32), np.empty((0, k), np.float32), nothing, nothing, nothing)
    return TopK(
        *(
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("ids", "logprobs", "logz", "sampled", "entropy")
        )
    )
