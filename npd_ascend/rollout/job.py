"""What a rollout is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Device, Job
from npd_ascend.config.marks import CHECKPOINT, Holds
from npd_ascend.config.schema import RolloutConfig


class RolloutJob(Job):
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

    @property
    def unread(self) -> frozenset[str]:
        return frozenset({"model"}) if self.settings.source == "reference" else frozenset()
