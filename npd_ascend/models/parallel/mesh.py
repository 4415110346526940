"""The processes that msrun started, as a grid of data x context x tensor-parallel ranks; or one process by itself."""

from __future__ import annotations

import os

import numpy as np
from mindspore import Tensor
from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank, init

from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.errors import UserError
from npd_ascend.models.network import setup_context
from npd_ascend.models.parallel.collectives import ALONE, AllReduce, ProcessGroup

_made: set[str] = set()


class DeviceMesh:
    """Rank and process groups of this process.

    Attributes:
        model: neighbouring ranks, which hold one model together.
        context: those that see different positions of the same rows with equal tensor-parallel shards.
        data: those that see the same positions of different rows; nothing is exchanged among them alone.
        replicas: ranks with equal tensor-parallel shards, whatever they see (``context`` by ``data``): gradients are
            summed over them.
        leads: rank 0 writes files and reports.
        schedules: this process only served the others.

    Args:
        device: what the process runs on; its context is set up here.
        tensor_parallel: processes that hold one model.
        context_parallel: such groups that read one batch.

    Raises:
        UserError: the processes cannot be dealt into groups of that size.
    """

    def __init__(self, device: Device, tensor_parallel: int = 1, context_parallel: int = 1):
        role = os.environ.get("MS_ROLE")
        # In a dry run one process plays one rank of many: RANK_SIZE and RANK_ID say which, nobody answers.
        simulated = "MS_SIMULATION_LEVEL" in os.environ and os.environ.get("RANK_SIZE", "1") != "1"
        setup_context(device)
        self.schedules = role == "MS_SCHED"
        self.rank, self.size = 0, 1
        world = ALONE
        if role is not None or simulated:
            # MindSpore's own parallel modes stay off: what is summed, and when, is written out where it is due.
            init()  # in msrun's scheduler this returns when the workers have ended
        if role == "MS_WORKER" or simulated:
            self.rank, self.size = get_rank(), get_group_size()
            world = ProcessGroup(GlobalComm.WORLD_COMM_GROUP, self.rank, self.size, device.target == "ascend")
        if self.schedules:
            return
        width = tensor_parallel * context_parallel
        if self.size % width:
            raise UserError(
                f"{self.size} process(es) cannot share models and rows that are cut over {width}: start "
                f"a multiple of {width} with msrun"
            )
        rank, share = self.rank, self.rank % tensor_parallel
        first = rank - rank % width
        self.model = _group_of(range(rank - share, rank - share + tensor_parallel), world)
        self.context = _group_of(range(first + share, first + width, tensor_parallel), world)
        self.data = ProcessGroup(rank=rank // width, size=self.size // width)
        self.replicas = _group_of(range(share, self.size, tensor_parallel), world)
        self._sums = {"world": AllReduce(world), "replicas": AllReduce(self.replicas), "model": AllReduce(self.model)}

    @property
    def leads(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def sum(self, values: Array) -> Array:
        """Elementwise sum over the replicas, float32; every rank gets the same bits."""
        return self._sum("replicas", values)

    def agree(self, values: Array) -> Array:
        """The values [...] that the first of the processes that hold one model gives, float32, on all of them."""
        return self._sum("model", values * (self.model.rank == 0))

    def wait(self) -> None:
        """Returns once all ranks have come here."""
        self._sum("world", np.zeros(1, np.float32))

    def _sum(self, over: str, values: Array) -> Array:
        if self._sums[over].alone:
            return values
        return self._sums[over](Tensor(values.astype(np.float32))).asnumpy()


def _group_of(ranks: range, world: ProcessGroup) -> ProcessGroup:
    if len(ranks) == 1:
        return ALONE
    if len(ranks) == world.size:
        return world
    name = f"npd_{ranks.start}_{ranks.step}_{len(ranks)}"
    if name not in _made:
        create_group(name, list(ranks))
        _made.add(name)
    return ProcessGroup(name, ranks.index(world.rank), len(ranks), world.native)
