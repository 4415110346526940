"""What a monitor is, and monitors by name.

A monitor is one function in one file of ``backends/`` that opens it: ``open(subject, project)``. ``module:function`` of
the user's own serves as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from npd_ascend.registry import Registry


@dataclass(frozen=True)
class Point:
    """What was measured at one step.

    Attributes:
        step: optimiser step of the whole run.
        time: when, seconds since 1970.
        values: by tag, e.g. ``loss/total``.
    """

    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class Subject:
    """The run that is watched.

    Attributes:
        name: of its directory.
        id: 20 letters and digits; a resumed run has the same, one that was changed by ``--redo`` another.
        folder: where the monitor may keep files.
        config: the configuration as plain values.
    """

    name: str
    id: str
    folder: Path
    config: dict[str, Any]


class Monitor(Protocol):
    """An open monitor. Any exception of it becomes a warning."""

    def log(self, points: Sequence[Point]) -> None:
        """Takes points in the order in which they were measured, and has them safe when it returns."""

    def close(self) -> None:
        """The run is over, or stopped; it may be opened again."""


Open = Callable[[Subject, str], Monitor]
MONITORS: Registry[Open] = Registry(
    "monitor", "report.monitors", "npd_ascend.monitors.backends", wrap=lambda f: f, takes_argument=True
)


def register(name: str) -> Callable[[Open], Open]:
    """Decorator that makes a function the monitor of its file. It is called with the run and with the project: what
    follows the name, as in ``wandb:my-project``, empty when nothing does."""
    return MONITORS.decorator(lambda opens: opens, name)
