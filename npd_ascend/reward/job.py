"""What the reward stage is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import SPEED, TOKENIZER, Holds
from npd_ascend.config.schema import Part


class RewardJob(Job):
    """``prompts`` + ``rollouts`` -> ``rewards``: one value a sample, and its parts."""

    out: Path
    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    tokenizer: Annotated[Path, TOKENIZER]
    trust_remote_code: bool = False
    eos_token_ids: list[int]
    parts: dict[str, Part]
    workers: Annotated[int | None, SPEED] = None
