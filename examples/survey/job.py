"""What the survey is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import Holds


class SurveyJob(Job):
    """``rollouts`` -> a JSON file with what they look like."""

    out: Path
    rollouts: Annotated[Path, Holds("rollouts")]
