"""What an evaluation is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import TOKENIZER, Holds
from npd_ascend.config.schema import EvaluateConfig


class EvaluateJob(Job):
    """``prompts`` + greedy or sampled ``rollouts`` -> accuracy."""

    out: Path
    """JSON file with the result."""
    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    tokenizer: Annotated[Path, TOKENIZER]
    trust_remote_code: bool = False
    name: str
    """What was evaluated, e.g. ``start``, ``generation 1``, ``end``."""
    settings: EvaluateConfig
    eos_token_ids: list[int]
