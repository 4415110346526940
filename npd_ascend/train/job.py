"""What a generation of training is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from npd_ascend.config.job import Declaration, Device, Job
from npd_ascend.config.marks import CHECKPOINT, SPEED, Holds
from npd_ascend.config.schema import SyncConfig, TrainConfig


class TrainJob(Job):
    """One generation of training: from the last checkpoint to the next refresh or the end."""

    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    topk: Annotated[Path | None, Holds("topk")]
    selection: Annotated[Path, Holds("selection")]
    packs: Annotated[Path, Holds("packs")]
    student: Annotated[Path, CHECKPOINT]
    """HF folder of the initial student (architecture, tokenizer files, weights of step 0)."""
    snapshot: Path
    """HF folder of the generator of this generation's rollouts; lag is measured against it."""
    before: str | None = None
    """Fingerprint of the training of the generation before, whose last checkpoint this one goes on from."""
    checkpoints: Path
    """Folder of ``step-NNNNNNNN`` checkpoints, shared by all generations."""
    out: Path
    """Folder of this generation's outcome: ``done.json``, ``next/`` (HF export for the next generation)."""
    metrics: Path
    """metrics.jsonl of the run."""
    generation: int
    start_progress: float
    """Epochs of the run that lie behind this generation's first step."""
    end_progress: float | None
    """Where this generation ends (next refresh or the end); None: decided while training."""
    snapshot_progress: float | None
    """Where ``next/`` is exported; equals end_progress unless ``sync.lead`` > 0; None: at the end or decided while
    training."""
    last: bool
    """No further generation may follow: train to the end of the run."""
    pad_token_id: int
    vocabulary: int
    """Token ids below this count; logits from here on are padding."""
    declares: Declaration | None = None
    """What snapshots say of how to speak to the student and where it ends; None: what ``student`` says."""
    seed: int
    settings: TrainConfig
    row_length: int
    sync: SyncConfig
    device: Device = Device()
    compiled: Path | None = None
    """Folder in which compiled graphs outlive the process; None: they do not."""
    longest: Annotated[int | None, SPEED] = None
    """Tokens that a prompt and its answer may have in any generation; None: not known beforehand."""
