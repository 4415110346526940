"""What the draw stage is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import Holds


class DrawJob(Job):
    """``prompts`` -> those of one generation, a ``prompts`` dataset as well."""

    out: Path
    source: Annotated[Path, Holds("prompts")]
    generation: int
    seed: int
    count: int
    """How many."""
    shard_size: int
