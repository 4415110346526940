"""What a worker of a study is given."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.config.job import Job


class ArmJob(Job):
    """One arm, from start to end."""

    study: Path
    """The study's resolved configuration."""
    arm: str
    """Key of the arm."""
    worker: int
    """Number of the worker, after which its scratch folder is remembered."""
