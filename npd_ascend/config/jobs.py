"""What a stage is told: everything it needs, as paths and settings, in one JSON file.

A stage is a function ``run(job)`` in ``npd_ascend.<module>.stage``; it reads finished datasets, writes its own and
knows nothing of the run around it. The executor writes jobs to ``<run>/jobs/`` and starts one child process each.

A job's fingerprint is the hash of all that stands in it, by the marks of its fields (``config/marks.py``): of an input
its content counts, not its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from npd_ascend.config.marks import CHECKPOINT, FILE, OUTPUT, SPEECH, SPEED, TOKENIZER, Holds
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

    target: Annotated[Literal["cpu", "ascend"], SPEED] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_device_memory: Annotated[str, SPEED] = "58GB"


class Job(Section):
    """Base of all jobs."""

    fingerprint: Annotated[str, OUTPUT]
    """Identity of what the stage makes: the hash of all that it depends on."""

    @property
    def unread(self) -> frozenset[str]:
        """Fields that the stage does not look at under these settings, so that they do not count."""
        return frozenset()


class Target(Section):
    """A dataset that a job is to make, beside others with fingerprints of their own."""

    folder: Path
    fingerprint: str


class PrepareJob(Job):
    """Prompt files -> ``prompts`` dataset (module ``data``)."""

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


class RolloutJob(Job):
    """``prompts`` -> ``rollouts`` under one frozen snapshot (module ``rollout``)."""

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


class AnnotateJob(Job):
    """``prompts`` + ``rollouts`` -> stored quantities of one model by packed prefill (module ``annotate``).

    What is None is not asked for, and costs nothing. Its fingerprint is made of those of its targets.
    """

    scores: Annotated[Target | None, OUTPUT] = None
    """NLL and entropy of each response after its prompt."""
    topk: Annotated[Target | None, OUTPUT] = None
    """The best ids of each response token with their log-probs, from the same pass as ``scores``."""
    unconditioned: Annotated[Target | None, OUTPUT] = None
    """NLL and entropy of each response without its prompt."""
    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    model: Annotated[Path, CHECKPOINT]
    vocabulary: int
    """Token ids below this count; logits from here on are padding."""
    role: Literal["teacher", "student"]
    worker: Annotated[int, SPEED] = 0
    """Which of ``settings.workers`` processes this is: shard s belongs to process s mod workers."""
    settings: AnnotateConfig
    device: Device = Device()
    compiled: Path | None = None
    """Folder in which compiled graphs outlive the process; None: they do not."""
    longest: Annotated[int | None, SPEED] = None
    """Tokens that a prompt and its answer may have in any generation; None: not known beforehand."""

    @property
    def targets(self) -> dict[str, Target]:
        """What is asked for, by field."""
        return {what: t for what in ("scores", "topk", "unconditioned") if (t := getattr(self, what)) is not None}


class SelectJob(Job):
    """``rollouts`` + the stored quantities that the filter needs -> ``selection`` (module ``select``)."""

    out: Path
    rollouts: Annotated[Path, Holds("rollouts")]
    quantities: Annotated[dict[str, Path], Holds("scores")] = {}
    """Folders of stored quantities by name, those that the filter needs."""
    settings: SelectConfig


class PackJob(Job):
    """Kept samples -> ``packs``: one plan of rows for each local epoch (module ``pack``)."""

    out: Path
    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    selection: Annotated[Path, Holds("selection")]
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


class TrainJob(Job):
    """One generation of training (module ``train``): from the last checkpoint to the next sync or the end."""

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
    """Where this generation ends (next sync or the end); None: decided while training."""
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


class EvaluateJob(Job):
    """``prompts`` + greedy or sampled ``rollouts`` -> accuracy (module ``evaluate``)."""

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
