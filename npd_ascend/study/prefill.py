"""Log-probs of one network over the whole vocabulary, at chosen positions of a micro-batch."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from npd_ascend.arrays import Array
from npd_ascend.models.network import CausalLM
from npd_ascend.study.batches import Part


class _LogProbs(nn.Cell):
    def __init__(self, net: CausalLM):
        super().__init__(auto_prefix=False)
        self.net, self.head, self.vocabulary = net, net.head_weight, net.spec.vocabulary
        self.logits = ops.MatMul(transpose_b=True)

    def construct(
        self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, window: Tensor | None, positions: Tensor
    ) -> Tensor:
        hidden = ops.gather(self.net(input_ids, position_ids, segment_ids, window), positions, 0)
        logits = self.logits(hidden, self.head.astype(hidden.dtype)).astype(ms.float32)
        return ops.log_softmax(ops.narrow(logits, 1, 0, self.vocabulary), -1)


class Prefill:
    """A live network that is asked for the next-token distributions of a micro-batch.

    Args:
        net: the network; its weights may change between calls.
    """

    def __init__(self, net: CausalLM):
        self.net = net
        self._cell = _LogProbs(net)

    def __call__(self, part: Part) -> Array:
        """[N, V] float32 log-probs of the V ids that count; rows beyond ``part.tokens`` mean nothing."""
        return self._cell(*self.net.inputs(part.rows), Tensor(part.positions)).asnumpy()
