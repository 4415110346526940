"""What a stage is told: everything it needs, as paths and settings, in one JSON file.

A stage is a function ``run(job)`` in ``npd_ascend.<room>.stage``; it reads finished datasets, writes its own and
knows nothing of the run around it. The conductor writes jobs to ``<run>/jobs/`` and starts one child process each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from npd_ascend.config.schema import (
    AnnotateConfig,
    DataConfig,
    EvaluateConfig,
    PackConfig,
    RolloutConfig,
    Section,
    SelectConfig,
    SyncConfig,
    TrainConfig,
)


class Device(Section):
    """Resolved device settings of a stage."""

    target: Literal["cpu", "ascend"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_device_memory: str = "58GB"


class PrepareJob(Section):
    """Prompt files -> ``prompts`` dataset (room ``data``)."""

    out: Path
    fingerprint: str
    files: list[Path]
    tokenizer: Path
    settings: DataConfig
    limit: int | None = None
    shard_size: int = 2048
    need_reference: bool = False
    """A row without a reference answer is then an error."""
    need_answer: bool = False
    trust_remote_code: bool = False
    student: Path | None = None
    """Checkpoint whose stop ids end an answer; that of the tokenizer if None."""
    teacher: Path | None = None
    """Checkpoint whose stop ids end an answer too, and whose chat template may be the one that is used."""
    teacher_needed: bool = True
    """Whether the run asks the teacher anything; if not, one that does not fit the student is left aside."""


class RolloutJob(Section):
    """``prompts`` -> ``rollouts`` under one frozen snapshot (room ``rollout``)."""

    out: Path
    fingerprint: str
    prompts: Path
    model: Path
    generation: int
    seed: int
    settings: RolloutConfig
    device: Device = Device()
    max_model_len: int
    """Longest prompt + max_new_tokens that the engine must hold."""
    eos_token_ids: list[int]
    vocabulary: int
    """Token ids below this count; logits from here on are padding."""


class AnnotateJob(Section):
    """``prompts`` + ``rollouts`` -> ``scores`` (and ``topk``) of one model by packed prefill (room ``annotate``)."""

    out: Path
    """``scores`` dataset."""
    fingerprint: str
    topk_out: Path | None
    """``topk`` dataset; None: not stored (the student's pass)."""
    topk_fingerprint: str | None = None
    prompts: Path
    rollouts: Path
    model: Path
    vocabulary: int
    """Token ids below this count; logits from here on are padding."""
    role: Literal["teacher", "student"]
    worker: int = 0
    """Which of ``settings.workers`` processes this is: shard s belongs to process s mod workers."""
    settings: AnnotateConfig
    device: Device = Device()
    unconditioned: bool = True
    """Whether the response-only pass is needed (a metric uses IFD)."""
    compiled: Path | None = None
    """Folder in which compiled graphs outlive the process; None: they do not."""
    longest: int | None = None
    """Tokens that a prompt and its answer may have in any generation; None: not known beforehand."""


class SelectJob(Section):
    """``rollouts`` + ``scores`` of both models -> ``selection`` (room ``select``)."""

    out: Path
    fingerprint: str
    rollouts: Path
    teacher_scores: Path | None
    student_scores: Path | None
    settings: SelectConfig


class PackJob(Section):
    """Kept samples -> ``packs``: one plan of rows for each local epoch (room ``pack``)."""

    out: Path
    fingerprint: str
    prompts: Path
    rollouts: Path
    selection: Path
    epochs: int
    """Plans to make: local epochs 0..epochs-1."""
    first_epoch_seed: int
    """Seed of local epoch e is derived from this and e."""
    group: int
    """Rows whose attention cost should be balanced against each other (the global batch)."""
    settings: PackConfig


class Declaration(Section):
    """What the files beside a student's weights must say of how it was trained."""

    tokenizer: Path
    """Folder whose tokenizer files belong to it."""
    stop_token_ids: list[int]
    """Ids that end an answer, the one that it was trained to give first."""
    chat_template: str | None
    """None: it was trained on prompts as they stand; the tokenizer keeps its own template."""
    special_tokens: dict[str, str | None]
    """Entries of tokenizer_config.json."""


class TrainJob(Section):
    """One generation of training (room ``train``): from the last checkpoint to the next sync or the end."""

    prompts: Path
    rollouts: Path
    topk: Path | None
    selection: Path
    packs: Path
    student: Path
    """HF folder of the initial student (architecture, tokenizer files, weights of step 0)."""
    snapshot: Path
    """HF folder of the generator of this generation's rollouts; lag is measured against it."""
    checkpoints: Path
    """Folder of ``step-NNNNNNNN`` checkpoints, shared by all generations."""
    out: Path
    """Folder of this generation's outcome: ``done.json``, ``next/`` (HF export for the next generation)."""
    metrics: Path
    """metrics.jsonl of the run."""
    fingerprint: str
    generation: int
    start_progress: float
    """Epochs of the run that lie behind this generation's first step."""
    end_progress: float | None
    """Where this generation ends (next sync or the end); None: decided by lag (policy kl)."""
    snapshot_progress: float | None
    """Where ``next/`` is exported; equals end_progress unless ``sync.lead`` > 0; None: at the end or decided by lag."""
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
    longest: int | None = None
    """Tokens that a prompt and its answer may have in any generation; None: not known beforehand."""


class EvaluateJob(Section):
    """``prompts`` + greedy or sampled ``rollouts`` -> accuracy (room ``evaluate``)."""

    out: Path
    """JSON file with the result."""
    fingerprint: str
    prompts: Path
    rollouts: Path
    tokenizer: Path
    trust_remote_code: bool = False
    name: str
    """What was evaluated, e.g. ``start``, ``generation 1``, ``end``."""
    settings: EvaluateConfig
    eos_token_ids: list[int]
