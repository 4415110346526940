"""The two compiled graphs of training: add a micro-batch's gradients, and take an optimiser step with their sum."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.network import CausalLM
from npd_ascend.objectives.chunked import ChunkedLoss
from npd_ascend.train.reader import MicroBatch


class PackedLoss(nn.Cell):
    """Network, choice of the response positions, head and loss."""

    def __init__(self, net: CausalLM, loss: ChunkedLoss):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, loss
        self.head = net.head_weight

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, positions: Tensor,
                  targets: Tensor, teacher: Tensor, weights: Tensor, parameters: Tensor,
                  scale: Tensor) -> tuple[Tensor, ...]:
        """(loss · scale, loss, CE, D): sums over tokens, see ``ChunkedLoss``. ``scale`` is 1 / tokens."""
        hidden = ops.gather(self.net(input_ids, position_ids, segment_ids), positions, 0)
        out = self.loss(hidden, self.head, targets, teacher, weights, parameters)
        return out[0] * scale, out[0], out[1], out[2]


class Accumulate(nn.Cell):
    """Adds gradients and sums of one micro-batch to what the step has so far."""

    def __init__(self, forward: PackedLoss, params: ParameterTuple, gradients: ParameterTuple, sums: Parameter):
        super().__init__(auto_prefix=False)
        self.forward, self.gradients, self.sums = forward, gradients, sums
        self.differentiate = ms.value_and_grad(forward, None, params, has_aux=True)

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, positions: Tensor,
                  targets: Tensor, teacher: Tensor, weights: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """The micro-batch's loss sum."""
        values, gradients = self.differentiate(input_ids, position_ids, segment_ids, positions, targets, teacher,
                                               weights, parameters, scale)
        for i in range(len(self.gradients)):
            ops.assign_add(self.gradients[i], gradients[i])
        ops.assign_add(self.sums, ops.stack((values[1], values[2], values[3])))
        return values[1]


class Update(nn.Cell):
    """Sum over ranks, clip by global norm, AdamW, and the sums back to zero."""

    def __init__(self, optimizer: AdamW, sums: Parameter, clip: float, parallel: bool):
        super().__init__(auto_prefix=False)
        o = optimizer
        self.params, self.gradients, self.m, self.v = o.params, o.gradients, o.m, o.v
        self.decays = tuple(p.ndim > 1 for p in o.params)
        self.sums, self.clip = sums, clip
        self.parallel = parallel
        if parallel:
            self.reduce = ops.AllReduce()
        self.adamw = ops.AdamWeightDecay()
        self.beta1, self.beta2 = o.beta1, o.beta2

    def construct(self, rate: Tensor, eps: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step; the scalars are those of ``AdamW.scalars``.

        Returns:
            Gradient norm before clipping, and the sums [3] over all ranks.
        """
        sums = self.sums + 0.0
        gradients: tuple[Tensor, ...] = ()
        square = 0.0
        if self.parallel:
            sums = self.reduce(sums)
        for total in self.gradients:
            g = self.reduce(total) if self.parallel else total
            gradients += (g,)
            square = square + ops.square(g).sum()
        norm = ops.sqrt(square)
        factor = self.clip / ops.maximum(norm, Tensor(self.clip, ms.float32))
        for i in range(len(self.params)):
            self.adamw(self.params[i], self.m[i], self.v[i], rate, self.beta1, self.beta2, eps,
                       decay if self.decays[i] else 0.0, gradients[i] * factor)
        for total in self.gradients:
            ops.assign(total, ops.zeros(total.shape, total.dtype))
        ops.assign(self.sums, ops.zeros((3,), ms.float32))
        return norm, sums


class AdamW:
    """Moments, and the scalars that turn MindSpore's uncorrected kernel into AdamW with bias correction.

    The kernel does w -= a (m / (√v + e) + d w). With a = lr √(1 − β2^t) / (1 − β1^t), e = eps √(1 − β2^t) and
    d = weight_decay · lr / a that is Loshchilov & Hutter (arXiv:1711.05101) algorithm 2, in one pass over memory.
    Matrices decay, vectors (norms, biases) do not.

    Args:
        params: trainable parameters, float32.
        settings: β, ε, decay.
    """

    def __init__(self, params: list[Parameter], settings: TrainConfig):
        self.params = ParameterTuple(params)
        self.gradients, self.m, self.v = (
            ParameterTuple([Parameter(ops.zeros(p.shape, ms.float32), name=f"{name}.{p.name}", requires_grad=False)
                            for p in params])
            for name in ("gradient", "m", "v"))
        self.settings = settings
        self.beta1, self.beta2 = settings.beta1, settings.beta2

    def scalars(self, lr: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(a, e, d) of step number ``step``, counted from 1; in float64 up to the last rounding."""
        s = self.settings
        root = math.sqrt(1.0 - s.beta2**step)
        a = lr * root / (1.0 - s.beta1**step)
        d = s.weight_decay * lr / a if a else 0.0
        return Tensor(np.float32(a)), Tensor(np.float32(s.eps * root)), Tensor(np.float32(d))


class Trainer:
    """Network and optimiser state, and one optimiser step over any number of micro-batches.

    Args:
        net: the network, weights loaded.
        settings: loss, optimiser.
        chunk: rows of a loss chunk.
        parallel: gradients are summed over ranks.
    """

    def __init__(self, net: CausalLM, settings: TrainConfig, chunk: int, parallel: bool = False):
        self.net = net
        self.optimizer = AdamW(net.trainable_params(), settings)
        sums = self._sums = Parameter(ops.zeros((3,), ms.float32), name="sums", requires_grad=False)
        forward = PackedLoss(net, ChunkedLoss(settings.loss, chunk))
        self._accumulate = Accumulate(forward, self.optimizer.params, self.optimizer.gradients, sums)
        self._update = Update(self.optimizer, sums, settings.clip, parallel)

    def reset(self) -> None:
        """Forgets moments, and whatever gradients have been added; the weights are loaded by the caller."""
        o = self.optimizer
        for parameter in (*o.gradients, *o.m, *o.v, self._sums):
            parameter.set_data(ops.zeros(parameter.shape, parameter.dtype))

    def accumulate(self, batch: MicroBatch, tokens: int) -> float:
        """Adds a micro-batch; ``tokens`` is the count of the whole global batch. Returns its loss sum."""
        scale = Tensor(np.float32(1.0 / max(1, tokens)))
        return float(self._accumulate(*(Tensor(a) for a in batch.arrays), scale).asnumpy())

    def update(self, lr: float, step: int) -> tuple[float, np.ndarray]:
        """Optimiser step number ``step`` (from 1): gradient norm, and loss, CE and D summed over the batch."""
        norm, sums = self._update(*self.optimizer.scalars(lr, step))
        return float(norm.asnumpy()), sums.asnumpy().astype(np.float64)
