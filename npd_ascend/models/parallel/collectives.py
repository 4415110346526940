"""Processes that share one piece of work, and the collectives between them as cells.

HCCL has all of them within any group. The CPU has AllReduce (sum) alone: AllGather works there on the world group
only, a maximum is silently summed, ReduceScatter does not exist. So there the others are made of sums, which makes the
same values bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import nn, ops


@dataclass(frozen=True)
class ProcessGroup:
    """A communication group as one of its processes sees it.

    Attributes:
        name: HCCL's or MindSpore's name of the group.
        rank: place of this process in it.
        size: processes in it.
        native: whether the device has AllGather and ReduceScatter within groups.
    """

    name: str = ""
    rank: int = 0
    size: int = 1
    native: bool = False


ALONE = ProcessGroup()


class AllReduce(nn.Cell):
    """Elementwise sum over the group; every rank gets the same bits. No gradient is asked of it."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.alone = group.size == 1
        if not self.alone:
            self.reduce = ops.AllReduce(group=group.name)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x of any shape -> the same shape."""
        return x if self.alone else self.reduce(x)


class AllGather(nn.Cell):
    """What every rank holds, side by side, on each of them."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.rank, self.size, self.native = group.rank, group.size, group.native
        if self.size > 1 and self.native:
            self.gather = ops.AllGather(group=group.name)
        elif self.size > 1:
            self.reduce = ops.AllReduce(group=group.name)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x of one shape everywhere -> [size, *shape], by rank."""
        if self.size == 1:
            return x.expand_dims(0)
        if self.native:
            return self.gather(x.expand_dims(0))
        parts: tuple[ms.Tensor, ...] = ()
        for i in range(self.size):
            parts += (x if i == self.rank else ops.zeros_like(x),)
        return self.reduce(ops.stack(parts))


class ReduceScatter(nn.Cell):
    """Sum over the group, of which each rank keeps its own part."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.rank, self.size, self.native = group.rank, group.size, group.native
        if self.size > 1 and self.native:
            self.scatter = ops.ReduceScatter(group=group.name)
        elif self.size > 1:
            self.reduce = ops.AllReduce(group=group.name)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [size * n] -> [n], the part of this rank."""
        if self.size == 1:
            return x
        if self.native:
            return self.scatter(x)
        return self.reduce(x).reshape(self.size, -1)[self.rank]


class AllToAll(nn.Cell):
    """All-to-all: part i of this rank goes to rank i. Its own inverse, and its gradient is the same collective."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.rank, self.size, self.native = group.rank, group.size, group.native
        if self.native:
            self.swap = ops.AlltoAll(split_count=group.size, split_dim=0, concat_dim=0, group=group.name)
        else:
            self.reduce, self.part = ops.AllReduce(group=group.name), ops.Slice()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [size, ...], place i for rank i -> the same shape, place i from rank i."""
        return self._swapped(x)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
        """The gradients go back to where the values came from."""
        return (self._swapped(dout),)

    def _swapped(self, x: ms.Tensor) -> ms.Tensor:
        if self.native:
            return self.swap(x)
        parts: tuple[ms.Tensor, ...] = ()
        for i in range(self.size):
            parts += (x if i == self.rank else ops.zeros_like(x),)
        shape, rest = x.shape, (0,) * (x.ndim - 1)
        received = self.part(self.reduce(ops.stack(parts)), (0, self.rank, *rest), (self.size, 1, *shape[1:]))
        return received.reshape(shape)


class CopyToTP(nn.Cell):
    """Where whole activations go into a layer that is cut: identity; the gradient is summed (Megatron-LM's f,
    arXiv:1909.08053)."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.reduce = ops.AllReduce(group=group.name)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x -> x."""
        return x

    def bprop(self, x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
        """Sum of the ranks' gradients."""
        return (self.reduce(dout),)


class ReduceFromTP(nn.Cell):
    """Where partial results leave a layer that is cut: summed; the gradient is the same for all (Megatron-LM's g)."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.reduce = ops.AllReduce(group=group.name)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x -> its sum over the group."""
        return self.reduce(x)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
        """The gradient as it comes."""
        return (dout,)
