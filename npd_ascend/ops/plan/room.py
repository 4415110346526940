"""Whether the disk holds what a run will write."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.plan.estimate import estimate
from npd_ascend.ops.plan.text import si

_SHORTER = 4
"""Answers may be as many times shorter than the plan takes them to be."""


def check_room(config: Config) -> tuple[float, float]:
    """Compares what the run has still to write, by the plan, with what is free where it will live.

    The plan guesses how long answers will be, so a run is refused only if it would not fit with much shorter ones.

    Returns:
        Bytes that the plan expects beyond what the run directory holds already, and bytes free.

    Raises:
        UserError: it does not fit, or the plan cannot be made.
    """
    cost, held = estimate(config), _held(config.run.dir)
    short = replace(cost.work, answer_tokens=cost.work.answer_tokens / _SHORTER)
    least, free = max(0.0, estimate(config, workload=short).disk - held), cost.free_disk
    if least > free:
        raise UserError(
            f"disk: the run needs about {si(least)}B more in {config.run.dir} even if answers have no more "
            f"than {short.answer_tokens:,.0f} tokens, and {si(free)}B are free there "
            f"(train.keep_checkpoints is {config.train.keep_checkpoints}); free some, or point run.dir at "
            "a larger disk"
        )
    return max(0.0, cost.disk - held), free


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
