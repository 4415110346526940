"""Single operators on a device: ``python -m npd_ascend.ops.node_report.operators JOB.json``, MindSpore environment.

MindSpore alone, without MindFormers, which takes longer to import than these take to measure. Lines as in ``lines``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops
from mindspore.communication import GlobalComm, get_group_size, get_rank, init

from npd_ascend.arrays import Array
from npd_ascend.models.parallel.collectives import AllGather, AllReduce, ProcessGroup, ReduceScatter
from npd_ascend.ops.node_report.lines import Lines, mean_seconds


class MintTopK(nn.Cell):
    """By aclnn."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [R, V] -> the k best of each row, the best first."""
        return mint.topk(x, self.k)[0]


class LegacyTopK(nn.Cell):
    """By the legacy kernel."""

    def __init__(self, k: int):
        super().__init__()
        self.k, self.top = k, ops.TopK(sorted=True)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """As ``MintTopK``."""
        return self.top(x, self.k)[0]


def topk(job: dict[str, Any], lines: Lines) -> None:
    """The k best of each row of logits by both operators."""
    logits = np.random.default_rng(0).standard_normal((job["rows"], job["vocabulary"]), np.float32)
    want = -np.sort(-logits[:16], -1)[:, : job["k"]]
    for name, kind in (("mint.topk", MintTopK), ("ops.TopK", LegacyTopK)):
        lines.take(name, _timed(kind(job["k"]), ms.Tensor(logits), want))


def _timed(cell: nn.Cell, logits: ms.Tensor, want: Array) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        got = cell(logits).asnumpy()[: len(want)]
        if not np.array_equal(got, want):
            raise ValueError(f"wrong values, off by {np.abs(got - want).max():.3g}")
        return {"ms": 1e3 * mean_seconds(lambda: cell(logits).asnumpy()), "rows": logits.shape[0]}

    return work


class First(nn.Cell):
    """The first value of what another cell gives: waiting for it takes no copy of the rest to the host."""

    def __init__(self, cell: nn.Cell):
        super().__init__()
        self.cell = cell

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [n] -> [1]."""
        return self.cell(x)[:1]


def hccl(job: dict[str, Any], lines: Lines) -> None:
    """Collectives over all ranks, by the bytes that each rank has to send at least."""
    init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return  # the workers have ended
    n = get_group_size()
    group = ProcessGroup(GlobalComm.WORLD_COMM_GROUP, get_rank(), n, job["target"] == "ascend")
    kinds: dict[str, tuple[nn.Cell, int]] = {"AllReduce": (AllReduce(group), 2)}
    if group.native:  # the CPU makes the others of sums
        kinds |= {"AllGather": (AllGather(group), 1), "ReduceScatter": (ReduceScatter(group), 1)}
    own = lines if group.rank == 0 else Lines(None)
    for megabytes in job["megabytes"]:
        size = int(megabytes * 2**20) // 4 // n * n
        for kind, (cell, times) in kinds.items():
            x = ms.Tensor(np.ones(size // n if kind == "AllGather" else size, np.float32))
            own.take(f"{kind} of {megabytes:g} MB over {n}", _sent(First(cell), x, times * (n - 1) / n * size * 4, n))


def _sent(cell: nn.Cell, x: ms.Tensor, sent: float, n: int) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        first = float(cell(x).asnumpy()[0])
        seconds = mean_seconds(lambda: cell(x).asnumpy())
        return {"ms": 1e3 * seconds, "gb_per_second": sent / seconds / 1e9, "ranks": n, "first": first}

    return work


def main() -> None:
    """Takes the measurements of a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    device = {} if job["target"] == "cpu" else {"device_id": int(os.environ.get("DEVICE_ID", "0"))}
    ms.set_context(mode=ms.GRAPH_MODE, device_target={"cpu": "CPU", "ascend": "Ascend"}[job["target"]], **device)
    {"topk": topk, "hccl": hccl}[job["kind"]](job, Lines(Path(job["lines"])))


if __name__ == "__main__":
    main()
