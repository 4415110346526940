"""The processes that msrun started, as a grid of data-parallel by tensor-parallel ranks; or one process by itself."""

from __future__ import annotations

import os

import numpy as np
from mindspore import Tensor
from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank, init

from npd_ascend.config.jobs import Device
from npd_ascend.errors import UserError
from npd_ascend.models.network import setup_context
from npd_ascend.models.peers import ALONE, Peers, Sum

_made: set[str] = set()


class Group:
    """Who this process is. Neighbouring ranks hold one model together (``model``); those with equal shares of
    different copies see different data (``data``).

    ``leads``: rank 0 writes files and reports. ``schedules``: this process only served the others.

    Args:
        device: what the process runs on; its context is set up here.
        tensor_parallel: processes that hold one model.

    Raises:
        UserError: the processes cannot be dealt into groups of that size.
    """

    def __init__(self, device: Device, tensor_parallel: int = 1):
        role = os.environ.get("MS_ROLE")
        setup_context(device)
        self.schedules = role == "MS_SCHED"
        self.rank, self.size = 0, 1
        self.model = self.data = world = ALONE
        if role is not None:
            # MindSpore's own parallel modes stay off: what is summed, and when, is written out where it is due.
            init()  # in msrun's scheduler this returns when the workers have ended
        if role == "MS_WORKER":
            native = device.target == "ascend"
            self.rank, self.size = get_rank(), get_group_size()
            world = self.data = Peers(GlobalComm.WORLD_COMM_GROUP, self.rank, self.size, native)
        if self.schedules:
            return
        if self.size % tensor_parallel:
            raise UserError(f"{self.size} process(es) cannot hold models that are cut over {tensor_parallel} devices "
                            f"each: start a multiple of {tensor_parallel} with msrun")
        if tensor_parallel > 1:
            first = self.rank - self.rank % tensor_parallel
            self.model = _peers(range(first, first + tensor_parallel), self.rank, "model", native)
            self.data = _peers(range(self.rank % tensor_parallel, self.size, tensor_parallel), self.rank, "data",
                               native)
        self._sums = {"world": Sum(world), "data": Sum(self.data), "model": Sum(self.model)}

    @property
    def leads(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum over the data-parallel ranks, float32; every rank gets the same bits."""
        return self._sum("data", values)

    def agree(self, values: np.ndarray) -> np.ndarray:
        """The values [...] that rank 0 of the tensor-parallel group gives, float32, on all its ranks."""
        return self._sum("model", values * (self.model.rank == 0))

    def wait(self) -> None:
        """Returns once all ranks have come here."""
        self._sum("world", np.zeros(1, np.float32))

    def _sum(self, over: str, values: np.ndarray) -> np.ndarray:
        if self._sums[over].alone:
            return values
        return self._sums[over](Tensor(values.astype(np.float32))).asnumpy()


def _peers(ranks: range, rank: int, what: str, native: bool) -> Peers:
    if len(ranks) == 1:
        return ALONE
    name = f"npd_{what}_{ranks[0]}_{len(ranks)}"
    if name not in _made:
        create_group(name, list(ranks))
        _made.add(name)
    return Peers(name, ranks.index(rank), len(ranks), native)
