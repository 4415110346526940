"""Weights & Biases; ``WANDB_MODE=offline`` keeps everything in ``<run>/monitors/wandb`` for ``wandb sync``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npd_ascend.monitors.registry import Monitor, Point, Subject, register

PROJECT = "npd-ascend"


class Run:
    """A run of Weights & Biases.

    Args:
        subject: the run.
        project: its project.
    """

    def __init__(self, subject: Subject, project: str):
        import wandb

        self._run: Any = wandb.init(
            project=project,
            name=subject.name,
            id=subject.id,
            resume="allow",
            dir=str(subject.folder),
            config=subject.config,
            save_code=False,
            settings=wandb.Settings(console="off", silent=True),
        )
        # An evaluation belongs to a step that is past when it ends: wandb's own counter only goes up.
        self._run.define_metric("*", step_metric="step")

    def log(self, points: Sequence[Point]) -> None:
        """Logs each with its step."""
        for p in points:
            self._run.log({"step": p.step, **p.values})

    def close(self) -> None:
        """Uploads the rest, or ends the offline file."""
        self._run.finish()


@register("wandb")
def open(subject: Subject, project: str) -> Monitor:
    """Needs the package ``wandb`` and a login, or ``WANDB_MODE=offline``."""
    return Run(subject, project or PROJECT)
