"""The two compiled graphs of training: add a micro-batch's gradients, and take an optimiser step with their sum."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.compile_cache import Graphs
from npd_ascend.models.network import CausalLM
from npd_ascend.models.peers import ALONE, Gather, Peers, ScatterSum, Sum
from npd_ascend.objectives.chunked import ChunkedLoss
from npd_ascend.train.adamw import AdamW
from npd_ascend.train.reader import MicroBatch


class PackedLoss(nn.Cell):
    """Network, choice of the response positions, head and loss."""

    def __init__(self, net: CausalLM, loss: ChunkedLoss):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, loss
        self.head = net.head_weight

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, window: Tensor | None,
                  positions: Tensor, targets: Tensor, teacher: Tensor, weights: Tensor, parameters: Tensor,
                  scale: Tensor, before: Tensor | None = None) -> tuple[Tensor, ...]:
        """(loss · scale, loss, CE, D): sums over tokens, see ``ChunkedLoss``. ``scale`` is 1 / tokens; ``before`` are
        the hidden states of an earlier pipeline stage."""
        hidden = self.net(input_ids, position_ids, segment_ids, window, before)
        # The gradient of a gather is a segment sum, which CANN does not name bfloat16 for.
        rows = ops.gather(hidden.astype(ms.float32), positions, 0).astype(hidden.dtype)
        out = self.loss(rows, self.head, targets, teacher, weights, parameters)
        return out[0] * scale, out[0], out[1], out[2]


class Adds(nn.Cell):
    """Adds gradients of one micro-batch to what the step has so far.

    Of a sharded optimizer each rank keeps the sum over the ranks, of its own runs only.
    """

    def __init__(self, optimizer: AdamW):
        super().__init__(auto_prefix=False)
        self.gradients, self.sharded = optimizer.gradients, optimizer.sharded
        self.lengths = tuple(g.size * optimizer.owners.size for g in optimizer.gradients)
        self.scatter = ScatterSum(optimizer.owners)

    def add(self, gradients: tuple[Tensor, ...]) -> None:
        """One gradient a parameter, of its shape; part of a graph."""
        last = gradients
        for i in range(len(self.gradients)):
            g = gradients[i]
            if self.sharded:
                # One collective after the other, and all after the backward pass: ranks must not meet in another order.
                flat = ops.depend(g.reshape(-1).astype(ms.float32), last)
                g = self.scatter(_filled(flat, self.lengths[i]))
                last = g
            ops.assign_add(self.gradients[i], g)


class Accumulate(Adds):
    """Adds gradients and sums of one micro-batch."""

    def __init__(self, forward: PackedLoss, optimizer: AdamW, sums: Parameter):
        super().__init__(optimizer)
        self.forward, self.sums = forward, sums
        self.differentiate = ms.value_and_grad(forward, None, optimizer.params, has_aux=True)

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, window: Tensor | None,
                  positions: Tensor, targets: Tensor, teacher: Tensor, weights: Tensor, parameters: Tensor,
                  scale: Tensor) -> Tensor:
        """The micro-batch's loss sum."""
        values, gradients = self.differentiate(input_ids, position_ids, segment_ids, window, positions, targets,
                                               teacher, weights, parameters, scale)
        self.add(gradients)
        ops.assign_add(self.sums, ops.stack((values[1], values[2], values[3])))
        return values[1]


class Update(nn.Cell):
    """Sum over ranks, clip by global norm, AdamW, and the sums back to zero.

    Args:
        optimizer: its state.
        sums: loss, CE and D [3].
        clip: largest gradient norm.
        replicas: ranks with equal shares of the model; over them gradients and sums add up.
        model: ranks that hold one model, or one stage of it, together.
        stages: ranks that hold the other layers.
    """

    def __init__(self, optimizer: AdamW, sums: Parameter, clip: float, replicas: Peers = ALONE,
                 model: Peers = ALONE, stages: Peers = ALONE):
        super().__init__(auto_prefix=False)
        o = optimizer
        self.params, self.weights, self.gradients, self.m, self.v = o.params, o.weights, o.gradients, o.m, o.v
        self.decays = tuple(p.ndim > 1 for p in o.params)
        self.sizes = tuple(p.size for p in o.params)
        self.cut, self.sharded = o.cut, o.sharded
        self.sums, self.clip = sums, clip
        self.over_replicas, self.over_model, self.over_stages = Sum(replicas), Sum(model), Sum(stages)
        self.gather = Gather(o.owners)
        self.adamw = ops.AdamWeightDecay()
        self.beta1, self.beta2 = o.beta1, o.beta2

    def construct(self, rate: Tensor, eps: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step; the scalars are those of ``AdamW.scalars``.

        Returns:
            Gradient norm before clipping, and the sums [3] over all ranks.
        """
        sums = self.over_stages(self.over_replicas(self.sums + 0.0))  # only the last stage has any
        last = sums
        gradients: tuple[Tensor, ...] = ()
        cut, whole = rate * 0.0, rate * 0.0
        for i in range(len(self.gradients)):
            g = self.gradients[i]
            if not self.sharded:
                g = self.over_replicas(ops.depend(g, last))
                last = g
            gradients += (g,)
            square = ops.square(g).sum()
            if self.cut[i]:
                cut = cut + square
            else:
                whole = whole + square
        squares = ops.depend(ops.stack((cut, whole)), last)
        if self.sharded:
            squares = self.over_replicas(squares)
        # What tensor-parallel ranks hold each in part adds up; what all of them hold counts once.
        norm = ops.sqrt(self.over_stages(self.over_model(squares[0]) + squares[1]))
        factor = self.clip / ops.maximum(norm, Tensor(self.clip, ms.float32))
        for i in range(len(self.params)):
            self.adamw(self.weights[i], self.m[i], self.v[i], rate, self.beta1, self.beta2, eps,
                       decay if self.decays[i] else 0.0, gradients[i] * factor)
        if self.sharded:
            last = norm
            for i in range(len(self.params)):
                runs = self.gather(ops.depend(self.weights[i] + 0.0, last))
                last = runs
                p = self.params[i]
                ops.assign(p, runs.reshape(-1)[: self.sizes[i]].reshape(p.shape).astype(p.dtype))
        for total in self.gradients:
            ops.assign(total, ops.zeros(total.shape, total.dtype))
        ops.assign(self.sums, ops.zeros((3,), ms.float32))
        return norm, sums


class Trainer:
    """Network and optimiser state, and one optimiser step over any number of micro-batches.

    Args:
        net: the network, weights loaded.
        settings: loss, optimiser.
        chunk: rows of a loss chunk.
        replicas: ranks over which gradients are summed.
    """

    def __init__(self, net: CausalLM, settings: TrainConfig, chunk: int, replicas: Peers = ALONE):
        self.net = net
        owners = replicas if settings.optimizer_sharding else ALONE
        self.optimizer = AdamW(net.trainable_params(), settings, owners, net.shares())
        self._sums = Parameter(ops.zeros((3,), ms.float32), name="sums", requires_grad=False)
        self._make(settings, chunk)
        self._update = Update(self.optimizer, self._sums, settings.clip, replicas, net.peers, net.stages)

    def reset(self) -> None:
        """Forgets moments, and whatever gradients have been added; the weights are loaded by the caller."""
        o = self.optimizer
        for parameter in (*o.gradients, *o.m, *o.v, self._sums):
            parameter.set_data(ops.zeros(parameter.shape, parameter.dtype))

    def compile(self, batch: MicroBatch, graphs: Graphs) -> None:
        """Compiles both graphs for micro-batches of this shape."""
        graphs.compile(self._accumulate, *self._arguments(batch, 1))
        graphs.compile(self._update, *self.optimizer.scalars(1e-3, 1))

    def accumulate_all(self, batches: list[MicroBatch], tokens: int) -> list[float]:
        """``accumulate``, one batch after the other."""
        return [self.accumulate(b, tokens) for b in batches]

    def accumulate(self, batch: MicroBatch, tokens: int) -> float:
        """Adds a micro-batch; ``tokens`` is the count of the whole global batch. Returns its loss sum."""
        return float(self._accumulate(*self._arguments(batch, tokens)).asnumpy())

    def update(self, lr: float, step: int) -> tuple[float, np.ndarray]:
        """Optimiser step number ``step`` (from 1): gradient norm, and loss, CE and D summed over the batch."""
        norm, sums = self._update(*self.optimizer.scalars(lr, step))
        return float(norm.asnumpy()), sums.asnumpy().astype(np.float64)

    def _make(self, settings: TrainConfig, chunk: int) -> None:
        """Graphs of forward and backward pass."""
        forward = PackedLoss(self.net, ChunkedLoss(settings.loss, chunk, self.net.peers))
        self._accumulate = Accumulate(forward, self.optimizer, self._sums)

    def _arguments(self, batch: MicroBatch, tokens: int) -> tuple[Tensor | None, ...]:
        scale = Tensor(np.float32(1.0 / max(1, tokens)))
        return (*self.net.inputs(batch.rows), *(Tensor(a) for a in batch.arrays), scale)


def _filled(flat: Tensor, length: int) -> Tensor:
    missing = length - flat.shape[0]
    return ops.concat((flat, ops.zeros((missing,), flat.dtype))) if missing else flat
