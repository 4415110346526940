"""The data-parallel group that msrun started, or a group of one."""

from __future__ import annotations

import os

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init

from npd_ascend.config.jobs import Device
from npd_ascend.models.network import setup_context


class _Sum(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce(x)


class Group:
    """Rank and size; ``rank`` 0 writes files and reports. ``schedules``: this process only served the others.

    Args:
        device: what the process runs on; its context is set up here.
    """

    def __init__(self, device: Device):
        role = os.environ.get("MS_ROLE")
        setup_context(device)
        self.schedules = role == "MS_SCHED"
        self.parallel = role == "MS_WORKER"
        self.rank, self.size = 0, 1
        if role is not None:
            # MindSpore's own data-parallel mode stays off: gradients are summed here, and only where they are due.
            init()  # in msrun's scheduler this returns when the workers have ended
        if self.parallel:
            self.rank, self.size = get_rank(), get_group_size()
            self._sum = _Sum()

    @property
    def leads(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum over ranks, float32; every rank gets the same bits."""
        if not self.parallel:
            return values
        return self._sum(Tensor(values.astype(np.float32))).asnumpy()

    def wait(self) -> None:
        """Returns once all ranks have come here."""
        self.sum(np.zeros(1, np.float32))
