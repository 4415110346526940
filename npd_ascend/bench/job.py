"""What a benchmarking worker is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Device, Job
from npd_ascend.config.marks import OUTPUT
from npd_ascend.config.schema import DataConfig, RolloutConfig


class BenchJob(Job):
    """A checkpoint and the benchmarks that it is to answer, in the rollout environment."""

    fingerprint: Annotated[str, OUTPUT] = ""
    out: Path
    """Folder of this checkpoint's results."""
    model: Path
    checkpoint_id: str
    """Hash of the checkpoint's content."""
    tokenizer: Path
    teacher: Path
    """Whose chat template may be the one that is used, as in a run."""
    trust_remote_code: bool
    data: DataConfig
    """How a question becomes a prompt."""
    folder: Path
    """Where the rows of all benchmarks are."""
    benchmarks: list[str]
    limit: int | None
    """Only so many rows of each, evenly spread."""
    max_new_tokens: int | None
    """Most tokens of an answer, in place of the benchmarks' own."""
    seed: int
    settings: RolloutConfig
    device: Device
    env: dict[str, str]
    """Added to the environment of the rollout workers."""
    cores: list[int] | None
    """CPU cores that they are tied to; None: all."""
    logs: Path
