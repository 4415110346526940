"""What a run will take, before it is started: tokens, FLOPs, hours and disk of each stage.

Hours are given only for devices in the table, at the utilisations named there; they are estimates, not measurements.
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_codec import TopKCodec

# Dense bf16 peak of one Ascend 910B2 (cube unit), and the shares of it that the stages may be expected to reach:
# training reports on this hardware reach 69 % for a 7B model, packed prefill should reach half, and decoding is
# bound by memory bandwidth, so its share is small.
_PEAK_FLOPS = 353.9e12
_SHARE = {"rollout": 0.04, "annotate": 0.5, "train": 0.45}
_DEVICES = 8
_BYTES_PER_TEXT_TOKEN = 3.5


@dataclass
class StageCost:
    """One line of the estimate. ``tokens`` are processed tokens, ``flops`` floating-point operations."""

    stage: str
    tokens: float
    flops: float
    disk: float = 0.0

    def hours(self, devices: int) -> float | None:
        """Wall hours on that many NPUs, None for stages that run on the host."""
        share = _SHARE.get(self.stage.split(" ")[0])
        return self.flops / (_PEAK_FLOPS * share * devices) / 3600 if share and self.flops else None


@dataclass
class Estimate:
    """Cost of a run, with what it rests on."""

    stages: list[StageCost]
    assumptions: list[str] = field(default_factory=list)
    free_disk: float = 0.0

    @property
    def disk(self) -> float:
        """Bytes that the run directory will hold."""
        return sum(s.disk for s in self.stages)


def estimate(config: Config) -> Estimate:
    """Estimates a run from model shapes, prompt files and, where they stand already, its own datasets."""
    student = ModelSpec.from_folder(config.models.student)
    teacher = ModelSpec.from_folder(config.models.teacher) if config.needs_teacher else student
    prompts, prompt_tokens, notes = _prompts(config)
    answer, note = _answer_tokens(config)
    notes.append(note)
    generations = (config.sync.refreshes if config.sync.policy == "kl" else len(config.sync_points())) + 1
    samples = prompts * config.rollout.paths
    response = samples * answer
    sequence = samples * prompt_tokens + response
    notes.append(
        f"{generations} generation(s) of {samples:,.0f} samples; every sample kept; {config.train.epochs:g} epochs"
    )
    passes = 2 if config.needs_scores else 1
    record = TopKCodec(config.annotate.k, teacher.vocab_size, config.annotate.value_bits).record_bytes
    stages = [
        StageCost(
            "rollout",
            generations * response,
            2 * student.parameters * generations * sequence,
            generations * response * 8,
        )
    ]
    if config.needs_teacher:
        stages.append(
            StageCost(
                "annotate teacher",
                generations * (sequence + (passes - 1) * response),
                2 * teacher.parameters * generations * (sequence + (passes - 1) * response),
                generations * response * record if config.train.loss.kd_weight else 0,
            )
        )
    if config.needs_scores:
        stages.append(
            StageCost(
                "annotate student",
                generations * (sequence + response),
                2 * student.parameters * generations * (sequence + response),
            )
        )
    # Training state is fp32 weights and two moments; two checkpoints, and one export a generation.
    disk = student.parameters * (12 * (config.train.keep_checkpoints + 1) + 2 * (generations + 1))
    stages.append(
        StageCost(
            "train", config.train.epochs * sequence, 6 * student.parameters * config.train.epochs * sequence, disk
        )
    )
    root = config.run.dir
    while not root.exists():
        root = root.parent
    return Estimate(stages, notes, shutil.disk_usage(root).free)


def render(e: Estimate) -> str:
    """The estimate as a table for people."""
    lines = [f"  {'stage':<18}{'tokens':>12}{'FLOPs':>12}{'disk':>12}{f'hours on {_DEVICES} x 910B2':>22}"]
    for s in e.stages:
        hours = s.hours(_DEVICES)
        lines.append(
            f"  {s.stage:<18}{_si(s.tokens):>12}{_si(s.flops):>12}{_si(s.disk) + 'B':>12}"
            f"{f'{hours:.2g} (estimate)' if hours is not None else '-':>22}"
        )
    lines.append(
        f"  disk in all {_si(e.disk)}B, free {_si(e.free_disk)}B"
        + ("  WARNING: not enough room" if e.disk > e.free_disk else "")
    )
    return "\n".join(lines + [f"  - {a}" for a in e.assumptions])


def _prompts(config: Config) -> tuple[float, float, list[str]]:
    """(prompts, mean prompt tokens, notes) from the tokenised prompts, or from the size of the files."""
    try:
        done = Dataset.open(RunDir(config.run.dir).prompts, "prompts")
        lengths = done.read(0, ["prompt_ids"]).column("prompt_ids").combine_chunks()
        return done.rows, len(lengths.values) / max(1, len(lengths)), ["prompt lengths as tokenised"]
    except UserError:
        pass
    rows = text = 0.0
    for path in config.data.prompts:
        n, size = _rows(path)
        rows, text = rows + n, text + size
    if not rows:
        raise UserError(f"no prompts in {', '.join(map(str, config.data.prompts))}")
    mean = text / rows / _BYTES_PER_TEXT_TOKEN
    return (
        min(rows, config.data.limit or rows),
        min(mean, config.data.max_prompt_tokens),
        [f"prompt tokens taken as bytes of a row / {_BYTES_PER_TEXT_TOKEN} = {mean:.0f}"],
    )


def _rows(path: Path) -> tuple[int, int]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_metadata(path).num_rows, path.stat().st_size
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
            n = size = 0
            for line in f:
                n, size = n + 1, size + len(line)
            return n, size
    except OSError as e:
        raise UserError(f"prompt file {path} cannot be read: {e.strerror or e}") from None


def _answer_tokens(config: Config) -> tuple[float, str]:
    run = RunDir(config.run.dir)
    try:
        done = Dataset.open(run.generation(0).rollouts, "rollouts")
        mean = done.extra["tokens"] / max(1, done.rows)
        return mean, f"answers of {mean:.0f} tokens, as the first generation's"
    except (UserError, KeyError):
        mean = config.rollout.max_new_tokens / 2
        return mean, f"answers of rollout.max_new_tokens / 2 = {mean:.0f} tokens"


def _si(x: float) -> str:
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= scale:
            return f"{x / scale:.3g} {unit}"
    return f"{x:.3g} "
