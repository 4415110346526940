"""What the pack stage is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import Holds
from npd_ascend.config.schema import PackConfig


class PackJob(Job):
    """Kept samples -> ``packs``: one plan of rows for each local epoch."""

    out: Path
    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    selection: Annotated[Path, Holds("selection")]
    epochs: int
    """Plans to make: local epochs 0..epochs-1."""
    first_epoch_seed: int
    """Seed of local epoch e is derived from this and e."""
    group: int
    """Rows whose attention cost should be balanced against each other (the global batch)."""
    settings: PackConfig
