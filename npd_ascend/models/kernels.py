"""Operators for which the two devices want different kernels.

Ascend's own library (aclnn) has operators for which the CPU has no kernel; those that the CPU has are legacy operators
there, which are compiled when they first run and cost the host more on every call. A cell decides when it is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops
from mindspore.ops.auto_generate import InplaceAddExt, InplaceZero, SliceExt


@ops.constexpr
def on_ascend() -> bool:
    """Whether what is built or compiled now runs on an NPU; inside graphs a constant."""
    return bool(ms.get_context("device_target") == "Ascend")


class AddAt(nn.Cell):
    """x [R, V] with values [R, n] added in the columns index [R, n] of their rows; equal columns add up.

    MindSpore's scatter of the CPU can only replace on Ascend.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ascend = on_ascend()

    def construct(self, x: ms.Tensor, index: ms.Tensor, values: ms.Tensor) -> ms.Tensor:
        if self.ascend:
            return mint.scatter_add(x, 1, index, values)
        return ops.tensor_scatter_elements(x, index, values, 1, "add")


class ScaledRows(nn.Cell):
    """x [R, V] times factors [R, 1].

    A broadcast product of the CPU keeps two tables of 64-bit indices as long as x, four times its memory, and is slower
    than an outer product and a product of equal shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ascend = on_ascend()
        self.outer = ops.MatMul()

    def construct(self, x: ms.Tensor, factors: ms.Tensor) -> ms.Tensor:
        if self.ascend:
            return x * factors
        return x * self.outer(factors, ops.ones((1, x.shape[1]), x.dtype))


class TakeRows(nn.Cell):
    """Rows of a tensor by number; the gradient of a row is the sum over the places that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.ascend = on_ascend()

    def construct(self, x: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
        """x [N, ...], index [R] int32 -> [R, ...]."""
        return mint.index_select(x, 0, index) if self.ascend else ops.gather(x, index, 0)


@lru_cache
def _orders(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[ms.Tensor, ms.Tensor]:
    """Rows in an array of ``shape`` whose axes are put in another order: where each comes from, and where it goes."""
    sources = np.arange(math.prod(shape), dtype=np.int32).reshape(shape).transpose(axes).reshape(-1)
    return ms.Tensor(sources), ms.Tensor(np.argsort(sources).astype(np.int32))


@ops.constexpr
def _moves(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[ms.Tensor, ms.Tensor]:
    return _orders(shape, axes)  # all layers share the tables


class _Moved(nn.Cell):
    """Rows [N, D] by number, each once; their gradients go back by number."""

    def __init__(self) -> None:
        super().__init__()
        self.take = ops.Gather()

    def construct(self, rows: ms.Tensor, sources: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        return self.take(rows, sources, 0)

    def bprop(
        self, rows: ms.Tensor, sources: ms.Tensor, targets: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        return self.take(dout, targets, 0), ops.zeros_like(sources), ops.zeros_like(targets)


class _ByNumber(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.moved = _Moved()

    def construct(self, x: ms.Tensor, shape: tuple[int, ...], axes: tuple[int, ...]) -> ms.Tensor:
        return self.moved(x.reshape(-1, x.shape[-1]), *_moves(shape, axes))


class _ByTranspose(nn.Cell):
    def construct(self, x: ms.Tensor, shape: tuple[int, ...], axes: tuple[int, ...]) -> ms.Tensor:
        return x.reshape(*shape, x.shape[-1]).transpose(*axes, len(axes)).reshape(-1, x.shape[-1])


class MoveRows(nn.Cell):
    """Rows whose axes are put in another order.

    A transpose of the CPU takes longer than picking rows, and keeps a 64-bit index for each number of them from
    compilation on. No condition stands in the graph: MindSpore 2.9 loses its branches inside a ``bprop`` that many
    layers share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.way = _ByTranspose() if on_ascend() else _ByNumber()

    def construct(self, x: ms.Tensor, shape: tuple[int, ...], axes: tuple[int, ...]) -> ms.Tensor:
        """x [..., D], of as many rows as ``shape`` has places -> [N, D], in the order of ``axes`` of that shape."""
        return self.way(x, shape, axes)


class Largest(nn.Cell):
    """The k largest along the last axis, largest first, and their columns, int32.

    Args:
        ascend: which kernel; None: that of the device.
    """

    def __init__(self, ascend: bool | None = None) -> None:
        super().__init__()
        self.ascend = on_ascend() if ascend is None else ascend
        self.legacy = ops.TopK(sorted=True)

    def construct(self, x: ms.Tensor, k: int) -> tuple[ms.Tensor, ms.Tensor]:
        """x [R, V] -> values, columns [R, k]."""
        if not self.ascend:
            return self.legacy(x, k)
        values, columns = mint.topk(x, k, -1, True, True)
        return values, columns.astype(ms.int32)


class Part(nn.Cell):
    """A run of places along one of two axes; no gradient is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ascend, self.slice = on_ascend(), SliceExt()

    def construct(self, x: ms.Tensor, axis: int, first: int, stop: int) -> ms.Tensor:
        """x [R, ...] -> its places ``first`` to ``stop`` along axis 0 or 1."""
        if self.ascend:
            return self.slice(x, axis, first, stop, 1)
        return x[first:stop] if axis == 0 else x[:, first:stop]


class Zero(nn.Cell):
    """Sets a parameter to zero, once ``value`` is there."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = InplaceZero()

    def construct(self, parameter: ms.Tensor, value: ms.Tensor) -> ms.Tensor:
        return self.zero(ops.depend(parameter, value))


@dataclass(frozen=True)
class InPlace:
    """Operators that change a parameter: (parameter, value) -> its new value.

    Attributes:
        add: of the value.
        set: to the value.
        clear: to zero, when the value that it has is no longer needed.
    """

    add: Callable[..., Any]
    set: Callable[..., Any]
    clear: Callable[..., Any]

    @classmethod
    def of_device(cls) -> InPlace:
        """Those for what is built now."""
        if on_ascend():
            return cls(InplaceAddExt(), ops.Assign(), Zero())
        # Zeros to assign would be folded into a constant of the parameter's size, kept with the graph.
        return cls(ops.AssignAdd(), ops.Assign(), ops.AssignSub())
