"""SwanLab; ``SWANLAB_MODE=local`` or ``offline`` keeps everything in ``<run>/monitors/swanlab``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npd_ascend.monitors.registry import Monitor, Point, Subject, register

PROJECT = "npd-ascend"


class Experiment:
    """An experiment of SwanLab.

    Args:
        subject: the run.
        project: its project.
    """

    def __init__(self, subject: Subject, project: str):
        import swanlab

        quiet = swanlab.Settings.model_validate({"terminal": {"proxy_type": "none"}})  # the live view stays as it is
        self._run: Any = swanlab.init(
            project=project,
            name=subject.name,
            id=subject.id,
            resume="allow",
            log_dir=str(subject.folder),
            config=subject.config,
            settings=quiet,
        )

    def log(self, points: Sequence[Point]) -> None:
        """Logs each at its step."""
        for p in points:
            self._run.log(p.values, step=p.step)

    def close(self) -> None:
        """Uploads the rest, or ends the local file."""
        self._run.finish()


@register("swanlab")
def open(subject: Subject, project: str) -> Monitor:
    """Needs the package ``swanlab`` and a login, or ``SWANLAB_MODE=local`` or ``offline``."""
    return Experiment(subject, project or PROJECT)
