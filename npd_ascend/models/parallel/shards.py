"""Parameters that tensor parallelism cuts: from whole tensors to a rank's share, and back. Plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.models.mapping import Arrays, Rule, rules, shard_of
from npd_ascend.models.spec import ModelSpec


class TPShards:
    """The rules of a network of which this process holds one of ``size`` tp_shards.

    Attributes:
        rules: of the parameters of the whole model.

    Args:
        spec: the whole architecture.
        interleaved: as in ``rules``.
        rank, size: tensor-parallel place.
        gather: what every rank holds of an array [...] -> [size, ...]; every rank must call together.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        interleaved: bool,
        rank: int = 0,
        size: int = 1,
        gather: Callable[[Array], Array] | None = None,
    ):
        self.rank, self.size = rank, size
        self.rules: dict[str, Rule] = {r.param: r for r in rules(spec, interleaved=interleaved)}
        own = rules(shard_of(spec, size), interleaved=interleaved) if size > 1 else self.rules.values()
        self._own: dict[str, Rule] = {r.param: r for r in own}
        self._gather = gather

    def cuts(self, param: str) -> bool:
        """Whether ranks hold different parts of a parameter."""
        return self.size > 1 and self.rules[param].cut is not None

    def merge(self, param: str, tensors: Arrays) -> Array:
        """This rank's parameter from its parts of the checkpoint's tensors."""
        return self._own[param].merge(tensors)

    def tensors(self, param: str, own: Array) -> Arrays:
        """The checkpoint's whole tensors of a parameter, of which this rank holds ``own``."""
        rule = self._own[param]
        if not self.cuts(param):
            return rule.split(own)
        assert self._gather is not None
        parts = [rule.split(p) for p in self._gather(own)]
        return [np.concatenate(same, rule.cut) for same in zip(*parts, strict=True)]

    def whole(self, param: str, own: Array) -> Array:
        """The parameter as one process by itself would hold it; ``own`` as for ``tensors``."""
        if self.cuts(param):
            return self.rules[param].merge(self.tensors(param, own))
        return own

    def own(self, param: str, whole: Array) -> Array:
        """This rank's part of ``whole``; inverse of ``whole``."""
        rule = self.rules[param]
        if not self.cuts(param):
            return whole
        assert rule.cut is not None
        return self.merge(param, [np.split(t, self.size, rule.cut)[self.rank] for t in rule.split(whole)])
