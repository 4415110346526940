"""What the select stage is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import Holds
from npd_ascend.config.schema import SelectConfig


class SelectJob(Job):
    """``rollouts`` + the stored quantities that the filter needs -> ``selection``."""

    out: Path
    rollouts: Annotated[Path, Holds("rollouts")]
    quantities: Annotated[dict[str, Path], Holds("scores")] = {}
    """Folders of stored quantities by name, those that the filter needs."""
    settings: SelectConfig
