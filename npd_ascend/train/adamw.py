"""AdamW, whole on every process or with its state cut over the ranks with equal tensor-parallel shards.

With optimizer sharding (ZeRO stage 2, arXiv:1910.02054) parameters are joined into flat buckets, of each of which a
rank owns an equal run: float32 weights, two moments and the sum of their gradients. The network's own weights are then
copies in the compute type, brought up to date after each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from npd_ascend.arrays import Array
from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.parallel.collectives import ALONE, AllGather, ProcessGroup
from npd_ascend.models.parallel.shards import TPShards
from npd_ascend.train.buckets import Bucket, make_buckets

PARTS = ("weights", "m", "v")


class AdamW:
    """Moments, and the scalars that turn MindSpore's uncorrected kernel into AdamW with bias correction.

    The kernel does w -= a (m / (√v + e) + d w). With a = lr √(1 − β2^t) / (1 − β1^t), e = eps √(1 − β2^t) and
    d = weight_decay · lr / a that is Loshchilov & Hutter (arXiv:1711.05101) algorithm 2, in one pass over memory.
    Matrices decay, vectors (norms, biases) do not.

    Attributes:
        params: trainable parameters of the network, those whose gradients come first in front: then a gradient is added
            to the sum, and its memory free, while the backward pass goes on. Of a sharded optimizer those that are
            treated alike are side by side.
        buckets: of ``params``, for collectives; of the state as well when it is sharded.
        weights: what is updated, float32: the parameters themselves, or this rank's run of each bucket.
        gradients, m, v: of the shapes of ``weights``.
        decays: whether each of ``weights`` decays.
        cut: whether tensor-parallel ranks hold different parts of each of ``weights``.
        names: of ``params``.

    Args:
        params: trainable parameters; float32 unless sharded.
        settings: β, ε, decay.
        owners: ranks over which the state is cut.
        tp_shards: of the network, where it is cut.
    """

    def __init__(
        self,
        params: list[Parameter],
        settings: TrainConfig,
        owners: ProcessGroup = ALONE,
        tp_shards: TPShards | None = None,
    ):
        self.settings, self.owners, self.tp_shards = settings, owners, tp_shards
        self.beta1, self.beta2 = settings.beta1, settings.beta2
        self.sharded = owners.size > 1
        late_first = params[::-1]
        self.params = ParameterTuple(sorted(late_first, key=self._order) if self.sharded else late_first)
        self.names = tuple(p.name for p in self.params)
        self._place = {name: i for i, name in enumerate(self.names)}
        kinds = [self._kind(p) for p in self.params]
        sizes = [p.size for p in self.params]
        if self.sharded:
            self.buckets = make_buckets(sizes, kinds, owners.size)
            kinds = [kinds[b.first] for b in self.buckets]
            names, shapes = [str(i) for i in range(len(kinds))], [(b.length // owners.size,) for b in self.buckets]
        else:
            self.buckets = make_buckets(sizes, [None] * len(sizes))
            names, shapes = list(self.names), [p.shape for p in self.params]
        self.cut, self.decays = tuple(k[0] for k in kinds), tuple(k[1] for k in kinds)
        self.gradients, self.m, self.v = (_zeros(part, names, shapes) for part in ("gradient", "m", "v"))
        self.weights = _zeros("weight", names, shapes) if self.sharded else self.params
        self._arriving: dict[tuple[str, int], tuple[Array, set[int]]] = {}
        self._gathered: tuple[str, int, Array] | None = None
        self._gather = AllGather(owners)
        if self.sharded:
            for p in self.params:
                self.take(p.name, p.float().asnumpy())

    @property
    def spread(self) -> bool:
        """Whether the state is on several processes, which must then call ``whole`` together, name by name."""
        return self.sharded or any(self.cut)

    def scalars(self, lr: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(a, e, d) of step number ``step``, counted from 1; in float64 up to the last rounding."""
        s = self.settings
        root = math.sqrt(1.0 - s.beta2**step)
        a = lr * root / (1.0 - s.beta1**step)
        d = s.weight_decay * lr / a if a else 0.0
        return Tensor(np.float32(a)), Tensor(np.float32(s.eps * root)), Tensor(np.float32(d))

    def reset(self) -> None:
        """Sets moments and summed gradients to zero."""
        for parameter in (*self.gradients, *self.m, *self.v):
            parameter.set_data(ops.zeros(parameter.shape, parameter.dtype))

    # ---- state, as one process by itself would hold it

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter of the whole model."""
        if self.tp_shards is not None:
            return self.tp_shards.rules[name].shape
        return tuple(self.params[self._place[name]].shape)

    def whole(self, part: str, name: str) -> Array:
        """``weights``, ``m`` or ``v`` of a parameter of the whole model, float32; quickest in order of ``names``."""
        own = self._own(part, self._place[name])
        return own if self.tp_shards is None else self.tp_shards.whole(name, own)

    def load(self, part: str, name: str, whole: Array) -> None:
        """Inverse of ``whole``, for this process alone; loading ``weights`` fills the network as well. Of a sharded
        optimizer the value is in place once all parameters of its bucket have come."""
        i = self._place[name]
        p = self.params[i]
        own = np.ascontiguousarray(self.tp_shards.own(p.name, whole) if self.tp_shards is not None else whole)
        if part == "weights":
            p.set_data(Tensor(own, dtype=p.dtype))
        if self.sharded:
            self._arrive(part, i, own)
        elif part != "weights":
            getattr(self, part)[i].set_data(Tensor(own))

    def take(self, name: str, own: Array) -> None:
        """Sets this rank's float32 weights from its share of a parameter, as ``load`` does; for ``load_hf``."""
        if self.sharded:
            self._arrive("weights", self._place[name], own)

    def _kind(self, p: Parameter) -> tuple[bool, bool, str]:
        return self.tp_shards is not None and self.tp_shards.cuts(p.name), p.ndim > 1, str(p.dtype)

    def _order(self, p: Parameter) -> tuple[bool, bool, str]:
        """Kind by kind, vectors last: a bucket of them, of many layers, is complete when the backward pass is nearly
        over, and the collectives wait for each other."""
        cut, matrix, dtype = self._kind(p)
        return cut, not matrix, dtype

    def _own(self, part: str, i: int) -> Array:
        """This rank's share of a parameter's part, gathered from the owners of its bucket."""
        if not self.sharded:
            return getattr(self, part)[i].asnumpy()
        number, bucket = self._bucket(i)
        if self._gathered is None or self._gathered[:2] != (part, number):
            value = self._gather(getattr(self, part)[number] + 0.0).asnumpy().reshape(-1)
            self._gathered = (part, number, value)
        start, size = bucket.starts[i - bucket.first], bucket.sizes[i - bucket.first]
        value = self._gathered[2][start : start + size].reshape(self.params[i].shape)
        if i == bucket.stop - 1:
            self._gathered = None
        return value

    def _arrive(self, part: str, i: int, own: Array) -> None:
        """Puts a parameter's values into this rank's run of its bucket, which is set when it is complete."""
        number, bucket = self._bucket(i)
        n = bucket.length // self.owners.size
        run, seen = self._arriving.setdefault((part, number), (np.zeros(n, np.float32), set()))
        start = bucket.starts[i - bucket.first] - self.owners.rank * n  # in this rank's run
        low, high = max(0, start), min(n, start + own.size)
        if low < high:
            run[low:high] = own.reshape(-1)[low - start : high - start]
        seen.add(i)
        if len(seen) == bucket.stop - bucket.first:
            getattr(self, part)[number].set_data(Tensor(run))
            del self._arriving[part, number]

    def _bucket(self, i: int) -> tuple[int, Bucket]:
        return next((n, b) for n, b in enumerate(self.buckets) if b.first <= i < b.stop)


def _zeros(part: str, names: list[str], shapes: Sequence[tuple[int, ...]]) -> ParameterTuple:
    return ParameterTuple(
        [
            Parameter(ops.zeros(s, ms.float32), name=f"{part}.{name}", requires_grad=False)
            for name, s in zip(names, shapes, strict=True)
        ]
    )
