"""The two compiled graphs of training: add a micro-batch's gradients, and take an optimiser step with their sum."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops.auto_generate import SliceExt

from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.compile_cache import Graphs
from npd_ascend.models.kernels import InPlace, Part, TakeRows, on_ascend
from npd_ascend.models.network import CausalLM
from npd_ascend.models.parallel.collectives import ALONE, AllGather, AllReduce, ProcessGroup, ReduceScatter
from npd_ascend.objectives.chunked import ChunkedLoss
from npd_ascend.objectives.registry import reported
from npd_ascend.train.adamw import AdamW
from npd_ascend.train.buckets import Bucket
from npd_ascend.train.reader import MicroBatch


class PackedLoss(nn.Cell):
    """Network, choice of the response positions, head and loss. The head's gradient is an output, which whoever
    differentiates must add: on its way through the backward pass it would be copied, and lie there to its end."""

    def __init__(self, net: CausalLM, loss: ChunkedLoss):
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.take = net, loss, TakeRows()
        self.head = net.head_weight

    def construct(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        window: Tensor | None,
        scale: Tensor,
        positions: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """loss · scale; [1 + M] the loss and its M terms: sums over tokens, see ``ChunkedLoss``, which also names
        the ``inputs``; and the part of the gradient of loss · scale that the head has as the head. ``scale`` is
        1 / tokens; the tokens' weights take it."""
        hidden = self.net(input_ids, position_ids, segment_ids, window)
        rows = self.take(hidden, positions)
        at = self.loss.weights
        out = self.loss(rows, ops.stop_gradient(self.head), inputs[:at] + (inputs[at] * scale,) + inputs[at + 1 :])
        return out[0], ops.concat((out[0].reshape(1), out[1])) / scale, out[3]


_add, _square, _step = (ops.MultitypeFuncGraph(name) for name in ("add", "square", "step"))
_flatten, _place, _clear = (ops.MultitypeFuncGraph(name) for name in ("flatten", "place", "clear"))
_slice = SliceExt()  # a cell cannot be handed to what is mapped
# What is done to each of hundreds of parameters is mapped over their tuples. A loop would be unrolled into functions
# that call each other: MindSpore ends at a depth of 1,000 calls, and takes a time that grows with its square.


@_add.register("Function", "Tensor", "Tensor")
def _add_tensor(kernel: Any, total: Tensor, value: Tensor) -> Tensor:
    return kernel(total, value)


@_square.register("Tensor", "Tensor")
def _square_tensor(after: Tensor, value: Tensor) -> Tensor:
    # Rows first: a sum over everything takes the CPU two and a half times as long.
    return ops.square(ops.depend(value, after)).sum(-1).sum().reshape(1)


@_step.register("Function", "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor",
                "Tensor", "Bool")  # fmt: skip
def _step_tensor(
    kernel: Any,
    beta1: float,
    beta2: float,
    rate: Tensor,
    eps: Tensor,
    decay: Tensor,
    factor: Tensor,
    weight: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Tensor,
    decays: bool,
) -> Tensor:
    return kernel(weight, m, v, rate, beta1, beta2, eps, decay if decays else 0.0, gradient * factor)


@_flatten.register("Tensor")
def _flatten_tensor(value: Tensor) -> Tensor:
    return value.reshape(-1).astype(ms.float32)


@_place.register("Function", "Tensor", "Tensor", "Number", "Number")
def _place_tensor(kernel: Any, flat: Tensor, target: Tensor, start: int, size: int) -> Tensor:
    run = _slice(flat, 0, start, start + size, 1) if on_ascend() else flat[start : start + size]
    return kernel(target, run.reshape(target.shape).astype(target.dtype))


@_clear.register("Function", "Tensor", "Tensor")
def _clear_tensor(kernel: Any, after: Tensor, value: Tensor) -> Tensor:
    return kernel(value, ops.depend(value, after))


class Buckets(nn.Cell):
    """Joins tensors into a bucket's flat array, and puts such an array into tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.set = ops.HyperMap(), InPlace.of_device().set

    def join(self, bucket: Bucket, values: tuple[Tensor, ...]) -> Tensor:
        """The bucket's tensors -> [bucket.length] float32."""
        flat = self.map(_flatten, values)
        missing = bucket.length - sum(bucket.sizes)
        if missing:
            flat = flat + (ops.zeros((missing,), ms.float32),)
        return flat[0] if len(flat) == 1 else ops.concat(flat)

    def place(self, bucket: Bucket, flat: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Sets the bucket's tensors from [>= bucket.length]; their new values."""
        return self.map(ops.partial(_place, self.set, flat), targets, bucket.starts, bucket.sizes)


class Accumulate(nn.Cell):
    """Adds gradients and sums of one micro-batch to what the step has so far.

    Of a sharded optimizer each rank keeps the sum over the ranks, of its own runs only.
    """

    def __init__(self, forward: PackedLoss, optimizer: AdamW, sums: Parameter):
        super().__init__(auto_prefix=False)
        self.forward, self.sums = forward, sums
        head = optimizer.names.index(forward.head.name)
        # A head that is a parameter of its own has no other gradient.
        tied = forward.net.spec.tie_embeddings
        chosen = [i for i in range(len(optimizer.params)) if tied or i != head]
        self.differentiate = ms.value_and_grad(
            forward, None, ParameterTuple([optimizer.params[i] for i in chosen]), has_aux=True
        )
        self.head, self.tied = head, tied
        self.gradients, self.sharded = optimizer.gradients, optimizer.sharded
        self.through = self.gradients if self.sharded else ParameterTuple([self.gradients[i] for i in chosen])
        self.buckets, self.flat = optimizer.buckets, Buckets()
        self.scatter = ReduceScatter(optimizer.owners)
        # A backward pass with collectives of its own comes first: ranks must not meet in another order.
        self.waits = forward.net.group.size > 1 or forward.net.slice.size > 1
        self.map, self.add = ops.HyperMap(), InPlace.of_device().add

    def construct(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        window: Tensor | None,
        scale: Tensor,
        positions: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        """The micro-batch's sums [1 + M], of which the loss is the first."""
        (_, sums, d_head), gradients = self.differentiate(
            input_ids, position_ids, segment_ids, window, scale, positions, *inputs
        )
        i = self.head
        if self.sharded:
            if self.tied:
                gradients = gradients[:i] + (gradients[i] + d_head,) + gradients[i + 1 :]
            else:
                gradients = gradients[:i] + (d_head,) + gradients[i:]
            added = self.map(ops.partial(_add, self.add), self.gradients, self._owned(gradients))
        else:
            self.add(self.gradients[i], d_head)
            added = self.map(ops.partial(_add, self.add), self.through, gradients)
        self.add(self.sums, sums)
        return ops.depend(sums, added)

    def _owned(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """This rank's run of each bucket of gradients, summed over the ranks, while the backward pass goes on."""
        last: Any = gradients if self.waits else gradients[0]
        runs: tuple[Tensor, ...] = ()
        for bucket in self.buckets:
            # One collective after the other, in the same order on all ranks.
            flat = ops.depend(self.flat.join(bucket, gradients[bucket.first : bucket.stop]), last)
            last = self.scatter(flat)
            runs += (last,)
        return runs


class Update(nn.Cell):
    """Sum over ranks, clip by global norm, AdamW, and the sums back to zero.

    Args:
        optimizer: its state.
        sums: [1 + M], the loss and its terms.
        clip: largest gradient norm.
        replicas: ranks with equal tensor-parallel shards; over them gradients and sums add up.
        model: ranks that hold one model together.
    """

    def __init__(
        self,
        optimizer: AdamW,
        sums: Parameter,
        clip: float,
        replicas: ProcessGroup = ALONE,
        model: ProcessGroup = ALONE,
    ):
        super().__init__(auto_prefix=False)
        o = optimizer
        self.params, self.weights, self.gradients, self.m, self.v = o.params, o.weights, o.gradients, o.m, o.v
        self.decays = o.decays
        # Squares and scaled gradients are temporary: groups one after the other bound what these take.
        self.groups = ((0, len(o.weights)),) if o.sharded else tuple((b.first, b.stop) for b in o.buckets)
        self.sharded, self.reduced = o.sharded, replicas.size > 1 and not o.sharded
        self.sums, self.clip = sums, clip
        cuts = [np.array(o.cut[first:stop], np.float32) for first, stop in self.groups]
        self.cut = tuple(Tensor(np.stack([1 - cut, cut])) for cut in cuts)
        self.over_replicas, self.over_model = AllReduce(replicas), AllReduce(model)
        self.buckets, self.flat, self.gather = o.buckets, Buckets(), AllGather(o.owners)
        self.map, self.kernel = ops.HyperMap(), ops.AdamWeightDecay()
        self.clear, self.part = InPlace.of_device().clear, Part()
        self.beta1, self.beta2 = o.beta1, o.beta2

    def construct(self, rate: Tensor, eps: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step; the scalars are those of ``AdamW.scalars``.

        Returns:
            Gradient norm before clipping, and the sums over all ranks.
        """
        sums = self.over_replicas(self.sums + 0.0)
        gradients = self._summed(sums) if self.reduced else self.gradients
        squares = self._squares(gradients)
        if self.sharded:
            squares = self.over_replicas(ops.depend(squares, sums))
        # What tensor-parallel ranks hold each in part adds up; what all of them hold counts once.
        norm = ops.sqrt(self._one(squares, 0) + self.over_model(self._one(squares, 1)))
        factor = self.clip / ops.maximum(norm, Tensor(self.clip, ms.float32))
        last = factor
        for first, stop in self.groups:
            stepped = self.map(
                ops.partial(_step, self.kernel, self.beta1, self.beta2, rate, eps, decay, ops.depend(factor, last)),
                self.weights[first:stop],
                self.m[first:stop],
                self.v[first:stop],
                gradients[first:stop],
                self.decays[first:stop],
            )
            last = self.map(ops.partial(_clear, self.clear, ops.depend(factor, stepped)), self.gradients[first:stop])
        if self.sharded:
            last = self._published(ops.depend(norm, last))
        self.clear(self.sums, ops.depend(self.sums, sums))
        return ops.depend(norm, last), sums

    def _summed(self, last: Tensor) -> tuple[Tensor, ...]:
        """The gradients, summed over the replicas bucket by bucket."""
        out = ()
        for bucket in self.buckets:
            own = self.gradients[bucket.first : bucket.stop]
            last = self.over_replicas(ops.depend(self.flat.join(bucket, own), last))
            out += self.flat.place(bucket, last, own)
        return out

    def _published(self, last: Tensor) -> tuple[Tensor, ...]:
        """Weights of all owners, put into the network bucket by bucket."""
        out = ()
        for i in range(len(self.buckets)):
            bucket = self.buckets[i]
            last = self.gather(ops.depend(self.weights[i] + 0.0, last)).reshape(-1)
            out += self.flat.place(bucket, last, self.params[bucket.first : bucket.stop])
        return out

    def _one(self, x: Tensor, i: int) -> Tensor:
        return self.part(x, 0, i, i + 1).sum()

    def _squares(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Sums of squares [2]: of what all tensor-parallel ranks hold, and of what is cut over them."""
        total = ops.zeros((2,), ms.float32)
        for i in range(len(self.groups)):
            first, stop = self.groups[i]
            some = ops.concat(self.map(ops.partial(_square, total), gradients[first:stop]))
            # As a product with [2, tensors]; joining two sums would take a legacy operator on Ascend.
            total = total + (self.cut[i] * some).sum(-1)
        return total


class Trainer:
    """Network and optimiser state, and one optimiser step over any number of micro-batches.

    Args:
        net: the network, weights loaded.
        settings: loss, optimiser.
        chunk: rows of a loss chunk.
        replicas: ranks over which gradients are summed.
        whole_vocabulary: see ``ChunkedLoss``.
    """

    def __init__(
        self,
        net: CausalLM,
        settings: TrainConfig,
        chunk: int,
        replicas: ProcessGroup = ALONE,
        whole_vocabulary: bool = False,
    ):
        self.net = net
        owners = replicas if settings.optimizer_sharding else ALONE
        self.optimizer = AdamW(net.trainable_params(), settings, owners, net.tp_shards())
        self.loss = ChunkedLoss(settings.loss, chunk, net.group, net.spec.vocabulary, whole_vocabulary)
        self._sums = Parameter(ops.zeros((1 + len(self.loss.terms),), ms.float32), name="sums", requires_grad=False)
        forward = PackedLoss(net, self.loss)
        self._accumulate = Accumulate(forward, self.optimizer, self._sums)
        self._update = Update(self.optimizer, self._sums, settings.clip, replicas, net.group)

    def reset(self) -> None:
        """Forgets moments, and whatever gradients have been added; the weights are loaded by the caller."""
        self.optimizer.reset()
        self._sums.set_data(ops.zeros(self._sums.shape, ms.float32))

    def compile(self, batch: MicroBatch, graphs: Graphs) -> None:
        """Compiles both graphs for micro-batches of this shape."""
        graphs.compile(self._accumulate, *self._arguments(batch, 1))
        graphs.compile(self._update, *self.optimizer.scalars(1e-3, 1))

    def accumulate(self, batch: MicroBatch, tokens: int) -> float:
        """Adds a micro-batch; ``tokens`` is the count of the whole global batch. Returns its loss sum."""
        return float(self._accumulate(*self._arguments(batch, tokens)).asnumpy()[0])

    def update(self, lr: float, step: int) -> tuple[float, dict[str, float]]:
        """Optimiser step number ``step`` (from 1): gradient norm, and ``loss``, ``ce``, ``kd``, ... (see
        ``registry.reported``) summed over the batch."""
        norm, sums = self._update(*self.optimizer.scalars(lr, step))
        return float(norm.asnumpy()), reported(self.loss.terms, sums.asnumpy().tolist())

    def _arguments(self, batch: MicroBatch, tokens: int) -> tuple[Tensor | None, ...]:
        scale = Tensor(np.float32(1.0 / max(1, tokens)))
        return (*self.net.inputs(batch.rows), scale, Tensor(batch.positions), *self.loss.tensors(batch.inputs))
