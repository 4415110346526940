"""What a rollout is given: one JSON file, or one batch of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from npd_ascend.config.job import Device, Job, SharedJob
from npd_ascend.config.marks import CHECKPOINT, Holds
from npd_ascend.config.schema import RolloutConfig
from npd_ascend.store.dataset import Dataset
from npd_ascend.workers.shares import Shares


class RolloutJob(SharedJob):
    """``prompts`` -> ``rollouts`` under one frozen snapshot."""

    out: Path
    prompts: Annotated[Path, Holds("prompts")]
    model: Annotated[Path, CHECKPOINT]
    generation: int
    seed: int
    settings: RolloutConfig
    device: Device = Device()
    max_model_len: int
    """Longest prompt + max_new_tokens that the engine must hold."""
    eos_token_ids: list[int]
    vocabulary: int
    """Token ids below this count; logits from here on are padding."""

    def shares(self) -> Shares:
        """Its shards, which several workers may share.

        Raises:
            UserError: the prompts are not there.
        """
        source, made = Dataset.open(self.prompts, "prompts"), Dataset(self.out, "rollouts", self.fingerprint)
        longest = self.settings.max_new_tokens if self.settings.source != "reference" else None
        rows = [r["rows"] * self.settings.paths for r in source.manifest["shards"]]
        return Shares(
            "rollout", rows, self.out, lambda: set(made.missing(source.shards)), lambda: made.complete, longest
        )

    @property
    def unread(self) -> frozenset[str]:
        return frozenset({"model"}) if self.settings.source == "reference" else frozenset()


class AskJob(Job):
    """A block of questions with settings of their own (``questions.py``)."""

    job: RolloutJob
    """Model, settings and length; its datasets are not looked at."""
    tokenizer: Path
    """Folder of the tokenizer that reads stop texts."""
    trust_remote_code: bool = False
    questions: list[tuple[int, dict[str, Any]]]
    """Number and fields of each ``Question``."""


class LiveJob(Job):
    """One batch of prompts, answered in memory (``live.py``)."""

    job: RolloutJob
    """Model, settings and lengths; its datasets are not looked at."""
    prompts: list[list[int]]
    seeds: list[int | None]
    """Of each answer; None: greedy."""
