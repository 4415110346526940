"""Whether the disk holds what a run will write."""

from __future__ import annotations

import os
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.plan.estimate import estimate
from npd_ascend.ops.plan.text import si


def check_room(config: Config) -> tuple[float, float]:
    """Compares what the run has still to write, by the plan, with what is free where it will live.

    Returns:
        Bytes needed beyond what the run directory holds already, and bytes free.

    Raises:
        UserError: it does not fit, or the plan cannot be made.
    """
    cost = estimate(config)
    needed, free = max(0.0, cost.disk - _held(config.run.dir)), cost.free_disk
    if needed > free:
        answers = cost.work.notes[-1].split(";")[0]
        raise UserError(f"disk: the run needs about {si(needed)}B more in {config.run.dir} and {si(free)}B are free "
                        f"there (it counts {answers}, and train.keep_checkpoints {config.train.keep_checkpoints}); "
                        "free some, or point run.dir at a larger disk")
    return needed, free


def _held(root: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # gone in between
    return total
