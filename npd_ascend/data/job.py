"""What the prepare stage is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Job
from npd_ascend.config.marks import FILE, SPEECH, TOKENIZER
from npd_ascend.config.schema import DataConfig


class PrepareJob(Job):
    """Prompt files -> ``prompts`` dataset."""

    out: Path
    files: Annotated[list[Path], FILE]
    tokenizer: Annotated[Path, TOKENIZER]
    settings: DataConfig
    limit: int | None = None
    shard_size: int = 2048
    need_reference: bool = False
    """A row without a reference answer is then an error."""
    need_answer: bool = False
    trust_remote_code: bool = False
    student: Annotated[Path | None, SPEECH] = None
    """Checkpoint whose stop ids end an answer; that of the tokenizer if None."""
    teacher: Annotated[Path | None, SPEECH] = None
    """Checkpoint whose stop ids end an answer too, and whose chat template may be the one that is used."""
    teacher_needed: bool = True
    """Whether the run asks the teacher anything; if not, one that does not fit the student is left aside."""
