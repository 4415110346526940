"""What the select stage is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import Holds, Younger
from npd_ascend.config.schema import AdvantageConfig, SelectConfig


class SelectJob(Job):
    """``rollouts`` + the stored quantities that the filter needs -> ``selection``."""

    out: Path
    rollouts: Annotated[Path, Holds("rollouts")]
    quantities: Annotated[dict[str, Path], Holds("scores")] = {}
    """Folders of stored quantities by name, those that the filter needs."""
    rewards: Annotated[Path | None, Holds("rewards"), Younger()] = None
    """What the answers are worth; None: the run has no rewards."""
    advantage: Annotated[AdvantageConfig, Younger()] = AdvantageConfig()
    settings: SelectConfig
