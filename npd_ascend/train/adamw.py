"""AdamW, whole on every process or with its state cut over the ranks with equal shares of the model.

With optimizer sharding (ZeRO stage 2, arXiv:1910.02054) a rank owns an equal run of every parameter's values: their
fp32 weights, two moments and the sum of their gradients. The network's own weights are then copies in the compute
type, brought up to date after each step.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.peers import ALONE, Gather, Peers
from npd_ascend.models.shares import Shares

PARTS = ("weights", "m", "v")


class AdamW:
    """Moments, and the scalars that turn MindSpore's uncorrected kernel into AdamW with bias correction.

    The kernel does w -= a (m / (√v + e) + d w). With a = lr √(1 − β2^t) / (1 − β1^t), e = eps √(1 − β2^t) and
    d = weight_decay · lr / a that is Loshchilov & Hutter (arXiv:1711.05101) algorithm 2, in one pass over memory.
    Matrices decay, vectors (norms, biases) do not.

    Attributes:
        params: trainable parameters of the network.
        weights: what is updated, float32: the parameters themselves, or this rank's runs of them.
        gradients, m, v: of the shapes of ``weights``.
        cut: whether tensor-parallel ranks hold different parts of each parameter.
        names: of the trainable parameters of the whole model: ``params`` and those of the other pipeline stages.

    Args:
        params: trainable parameters; float32 unless sharded.
        settings: β, ε, decay.
        owners: ranks over which the state is cut.
        shares: of the network, where it is cut.
    """

    def __init__(self, params: list[Parameter], settings: TrainConfig, owners: Peers = ALONE,
                 shares: Shares | None = None):
        self.params = ParameterTuple(params)
        self.owners, self.shares = owners, shares
        self.sharded = owners.size > 1
        self.cut = tuple(shares is not None and shares.cuts(p.name) for p in params)
        shapes = [(self._run(p),) if self.sharded else p.shape for p in params]
        self.weights = self.params
        if self.sharded:
            self.weights = _zeros("weight", params, shapes)
            for i, p in enumerate(params):
                self._set_run(self.weights[i], p.float().asnumpy())
        self.gradients, self.m, self.v = (_zeros(name, params, shapes) for name in ("gradient", "m", "v"))
        self.settings = settings
        self.beta1, self.beta2 = settings.beta1, settings.beta2
        self._place = {p.name: i for i, p in enumerate(params)}
        self.names = tuple(shares.rules if shares is not None and shares.dealt else self._place)
        self._gather = Gather(owners)

    @property
    def spread(self) -> bool:
        """Whether the state stands on several processes, which must then call ``whole`` together."""
        return self.sharded or any(self.cut) or len(self.names) > len(self.params)

    def scalars(self, lr: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(a, e, d) of step number ``step``, counted from 1; in float64 up to the last rounding."""
        s = self.settings
        root = math.sqrt(1.0 - s.beta2**step)
        a = lr * root / (1.0 - s.beta1**step)
        d = s.weight_decay * lr / a if a else 0.0
        return Tensor(np.float32(a)), Tensor(np.float32(s.eps * root)), Tensor(np.float32(d))

    # ---- state, as one process by itself would hold it

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter of the whole model."""
        return tuple(self.params[self._place[name]].shape) if self.shares is None else self.shares.rules[name].shape

    def whole(self, part: str, name: str) -> np.ndarray:
        """``weights``, ``m`` or ``v`` of a parameter of the whole model, float32."""
        own = self._own(part, self._place[name]) if name in self._place else None
        if self.shares is not None:
            return self.shares.whole(name, own)
        assert own is not None
        return own

    def load(self, part: str, name: str, whole: np.ndarray) -> None:
        """Inverse of ``whole``, for this process alone; loading ``weights`` fills the network as well."""
        i = self._place[name]
        p = self.params[i]
        own = np.ascontiguousarray(self.shares.own(p.name, whole) if self.shares is not None else whole)
        if part == "weights":
            p.set_data(Tensor(own, dtype=p.dtype))
        if self.sharded:
            self._set_run(getattr(self, part)[i], own)
        elif part != "weights":
            getattr(self, part)[i].set_data(Tensor(own))

    def take(self, name: str, own: np.ndarray) -> None:
        """Sets this rank's float32 weights from its share of a parameter; for ``load_hf``."""
        if self.sharded:
            self._set_run(self.weights[self._place[name]], own)

    def _own(self, part: str, i: int) -> np.ndarray:
        p, value = self.params[i], getattr(self, part)[i]
        if self.sharded:
            return self._gather(value + 0.0).asnumpy().reshape(-1)[: p.size].reshape(p.shape)
        return value.asnumpy()

    def _run(self, p: Parameter) -> int:
        return -(-p.size // self.owners.size)

    def _set_run(self, piece: Parameter, own: np.ndarray) -> None:
        n = piece.size
        run = np.zeros(n, np.float32)
        given = own.reshape(-1)[self.owners.rank * n: (self.owners.rank + 1) * n]
        run[: given.size] = given
        piece.set_data(Tensor(run))


def _zeros(name: str, params: list[Parameter], shapes: list) -> ParameterTuple:
    return ParameterTuple([Parameter(ops.zeros(s, ms.float32), name=f"{name}.{p.name}", requires_grad=False)
                           for p, s in zip(params, shapes, strict=True)])
