"""How far the student has moved from the snapshot that wrote the data: KL over the whole vocabulary, both ways.

The generator's final hidden states on the probe set are computed once, by the same compiled network, and kept on the
host with its head; so measuring costs one forward pass, and equal weights give exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from npd_ascend.arrays import Array
from npd_ascend.models.network import CausalLM
from npd_ascend.models.parallel.collectives import ALONE, AllReduce, ProcessGroup
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.vocabulary import LogProbs, MaskPadding
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.train.corpus import EpochPlan
from npd_ascend.train.reader import Reader, head_rows


@dataclass(frozen=True)
class Lag:
    """Mean over the response tokens of the probe set, nats a token (arXiv:2605.05940, section on the near-policy
    regime; estimated exactly over the vocabulary instead of by sampling).

    Attributes:
        forward: KL(current ‖ generator), the one that is held under ε.
        reverse: KL(generator ‖ current).
    """

    forward: float
    reverse: float


class Divergence(nn.Cell):
    """Sums of KL both ways over the rows of a chunk: [2].

    Args:
        vocabulary: ids that count; None: all.
        group: ranks over which heads are cut by vocabulary.
    """

    def __init__(self, vocabulary: int | None = None, group: ProcessGroup = ALONE) -> None:
        super().__init__()
        self.mask = MaskPadding(vocabulary, group)
        self.logits = ops.MatMul(transpose_b=True)
        self.cut = group.size > 1
        self.logprobs, self.sum = LogProbs(group), AllReduce(group)

    def construct(self, hidden: Tensor, head: Tensor, old_hidden: Tensor, old_head: Tensor, mask: Tensor) -> Tensor:
        new = self._log_softmax(self.logits(hidden, head.astype(hidden.dtype)).astype(ms.float32))
        # One collective after the other: ranks whose slices differ in padding have graphs that differ in order, too.
        old_hidden = ops.depend(old_hidden, new)
        old = self._log_softmax(self.logits(old_hidden, old_head.astype(hidden.dtype)).astype(ms.float32))
        gap = new - old
        forward = (ops.exp(new) * gap).sum(-1)
        reverse = -(ops.exp(old) * gap).sum(-1)
        return self.sum(ops.concat(((forward * mask).sum().reshape(1), (reverse * mask).sum().reshape(1))))

    def _log_softmax(self, logits: Tensor) -> Tensor:
        logits = self.mask(logits)
        if not self.cut:
            return ops.log_softmax(logits, -1)
        logz, _ = self.logprobs(logits, ops.zeros((logits.shape[0], 1), ms.int32))
        return logits - logz


class LagProbe:
    """A fixed probe set with the generator's answers to it.

    Args:
        net: the network, holding the generator's weights at this moment.
        reader: of the generation.
        samples: their largest number, the first of those that are trained on.
        mesh: probe batches are shared among the ranks that read different ones, their positions among those that read
            the same.
        divergence: what computes a chunk; it may be kept from an earlier probe.
    """

    def __init__(
        self, net: CausalLM, reader: Reader, samples: int, mesh: DeviceMesh, divergence: nn.Cell | None = None
    ):
        self.net, self.reader, self.mesh = net, reader, mesh
        plan = probe_plan(reader.plans[0], samples, reader.row_length)
        reader.check_segments(plan)
        micro = reader.settings.micro_batch
        spans = [(b, min(b + micro, len(plan))) for b in range(0, len(plan), micro)]
        self._inputs = [reader.inputs(plan, *span) for span in spans[mesh.data.rank :: mesh.data.size]]
        self.tokens = reader.trained(plan)
        counts = [len(where) for *_, where in self._inputs]
        limit = reader.settings.vocab_chunk_rows
        rows = head_rows(counts, limit, reader.align)
        self._chunk = rows // -(-rows // max(8, limit))
        self._divergence = divergence or Divergence(net.spec.vocabulary, net.group)
        self._old_hidden = [self._hidden(i) for i in range(len(self._inputs))]
        self._old_head = net.head_weight.asnumpy().copy()

    def measure(self) -> Lag:
        """Lag of the network's weights as they are now."""
        old_head = Tensor(self._old_head)
        total = np.zeros(2)
        for i, old in enumerate(self._old_hidden):
            new = self._hidden(i)
            for start in range(0, len(new), self._chunk):
                part = slice(start, start + self._chunk)
                mask = np.zeros(self._chunk, np.float32)
                mask[: len(new[part])] = 1
                sums = self._divergence(
                    Tensor(self._padded(new[part])),
                    self.net.head_weight,
                    Tensor(self._padded(old[part])),
                    old_head,
                    Tensor(mask),
                )
                total += sums.asnumpy()
        forward, reverse = self.mesh.sum(total) / max(1, self.tokens)
        return Lag(float(forward), float(reverse))

    def _hidden(self, i: int) -> Array:
        """[tokens, H] float32 of probe batch ``i`` under the present weights."""
        rows, _, where = self._inputs[i]
        hidden = self.net(*self.net.inputs(rows))
        return hidden.astype(ms.float32).asnumpy()[where]

    def _padded(self, hidden: Array) -> Array:
        out = np.zeros((self._chunk, hidden.shape[1]), np.float32)
        out[: len(hidden)] = hidden
        return out


def probe_plan(plan: EpochPlan, samples: int, row_length: int) -> EpochPlan:
    """Rows of the ``samples`` lowest ordinals of a plan, with the lengths they have there."""
    chosen = np.argsort(plan.samples, kind="stable")[:samples]
    lengths = plan.prompt_tokens[chosen].astype(np.int64) + plan.response_tokens[chosen]
    bins = best_fit_decreasing(lengths, row_length)
    chosen = chosen[bins.order]
    return EpochPlan(bins.offsets, plan.samples[chosen], plan.prompt_tokens[chosen], plan.response_tokens[chosen])
