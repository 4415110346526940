"""From configuration to jobs: what each stage is given, where it writes, what its output depends on.

This is the one place that knows both the run directory and the stages' contracts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from npd_ascend.config.jobs import (
    AnnotateJob,
    Declaration,
    Device,
    EvaluateJob,
    PackJob,
    PrepareJob,
    RolloutJob,
    SelectJob,
    TrainJob,
)
from npd_ascend.config.schema import Config, Section
from npd_ascend.data.prompts import expand
from npd_ascend.data.tokenizer import COMPANIONS, TOKENIZER_FILES, declared_stop_ids, has_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.pipeline.sync import Span, span
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import digest, file_sha256, fingerprint, model_fingerprint, seals_hold
from npd_ascend.store.layout import RunDir

# Settings that change how fast or where a stage works, not what it makes.
_ROLLOUT_SPEED = {
    "workers",
    "tensor_parallel",
    "max_num_seqs",
    "kv_cache_gib",
    "memory_fraction",
    "keep_alive",
    "enforce_eager",
    "max_failures",
    "hang_seconds",
}
_ANNOTATE_SPEED = {"workers", "tensor_parallel"}
_TRAIN_SPEED = {"checkpoint_every", "keep_checkpoints"}
STAGES = ("prepare", "rollout", "annotate_teacher", "annotate_student", "select", "pack", "train", "evaluate")


@dataclass
class Step:
    """One stage of one generation, ready to run.

    Attributes:
        stage: name from ``STAGES``.
        room: module ``npd_ascend.<room>.stage`` that runs it.
        job: its job.
        outputs: datasets that it finishes.
        done_file: or the JSON file that it writes last, holding its fingerprint.
        snapshot: mark and folder of the checkpoint that it exports.
        generation: which one; -1 for preparation.
    """

    stage: str
    room: str
    job: Section
    generation: int
    outputs: list[Dataset] = field(default_factory=list)
    done_file: Path | None = None
    snapshot: tuple[Path, Path] | None = None

    @property
    def name(self) -> str:
        """For people and file names, e.g. ``g001-annotate_teacher``."""
        tail = getattr(self.job, "name", "").replace(" ", "-")
        if isinstance(self.job, AnnotateJob) and self.job.settings.workers > 1:
            tail = str(self.job.worker)
        prefix = f"g{self.generation:03d}-" if self.generation >= 0 else ""
        return f"{prefix}{self.stage}{'-' + tail if tail else ''}"

    def shares(self) -> list[Step]:
        """The processes that this step takes: itself, or one step for each annotation worker."""
        job = self.job
        if not isinstance(job, AnnotateJob) or job.settings.workers == 1:
            return [self]
        return [replace(self, job=job.model_copy(update={"worker": i})) for i in range(job.settings.workers)]

    @property
    def complete(self) -> bool:
        """Whether all that it makes stands, made from these very inputs."""
        if self.done_file is not None:
            done = read_sealed(self.done_file) or {}
            mine = done.get("fingerprint") == self.job.fingerprint  # type: ignore[attr-defined]
            return mine and (self.snapshot is None or snapshot_intact(*self.snapshot))
        return all(d.complete for d in self.outputs)


def snapshot_intact(mark: Path, folder: Path) -> bool:
    """Whether a snapshot is, byte for byte, what training exported; ``mark`` holds the hashes of its files."""
    return seals_hold(folder, (read_sealed(mark) or {}).get("files"))


class StepBuilder:
    """Builds the steps of a run as far as their inputs are known.

    Args:
        config: the run's configuration.
        run: its directory.
        device: resolved device.
        remember_hashes: keep content hashes of model files in the run directory.
    """

    def __init__(self, config: Config, run: RunDir, device: Device, remember_hashes: bool = True):
        self.config, self.run, self.device = config, run, device
        self.compiled = run.compiled.resolve() if device.target == "cpu" else None  # untried on Ascend
        self._hashes = run.hashes if remember_hashes else None
        self.spec = ModelSpec.from_folder(config.models.student)
        self.tokenizer = config.models.tokenizer or config.models.student

    # ---- identities

    def model(self, folder: Path) -> str:
        """Content identity of a checkpoint folder."""
        return model_fingerprint(folder, self._hashes)

    def snapshot(self, generation: int) -> Path:
        """HF folder of the student that answers in this generation."""
        return self.config.models.student if generation == 0 else self.run.generation(generation - 1).next_snapshot

    # ---- steps

    def prepare(self, evaluation: bool = False, alone: bool = False) -> Step:
        """Prompts as token ids; ``alone``: of a checkpoint that is only evaluated, whatever the teacher may be."""
        c = self.config
        files = c.evaluate.prompts if evaluation else c.data.prompts
        limit = c.evaluate.limit if evaluation else c.data.limit
        need_reference = not evaluation and c.rollout.source == "reference"
        teacher_needed = not alone and (c.needs_teacher or c.rollout.source == "teacher")
        fp = fingerprint(
            "prompts",
            {
                "files": [_file_identity(f) for f in expand(files)],
                "settings": c.data.model_dump(mode="json", exclude={"prompts", "limit"}),
                "limit": limit,
                "tokenizer": _tokenizer_identity(self.tokenizer),
                # Stop ids and chat template are settled on between the two models, by these files alone.
                "teacher": _tokenizer_identity(c.models.teacher) if has_tokenizer(c.models.teacher) else None,
                "teacher_needed": teacher_needed,
                "chat_template": _template_identity(c.data.chat_template),
                "stops": [declared_stop_ids(m) for m in (self.tokenizer, c.models.student, c.models.teacher)],
                "shard": c.rollout.shard_size,
                "reference": need_reference,
                "answer": evaluation,
            },
        )
        out = self.run.eval_prompts if evaluation else self.run.prompts
        job = PrepareJob(
            out=out,
            fingerprint=fp,
            files=files,
            tokenizer=self.tokenizer,
            settings=c.data,
            limit=limit,
            shard_size=c.rollout.shard_size,
            need_reference=need_reference,
            need_answer=evaluation,
            trust_remote_code=c.models.trust_remote_code,
            student=c.models.student,
            teacher=c.models.teacher,
            teacher_needed=teacher_needed,
        )
        return Step("prepare", "data", job, -1, [Dataset(out, "prompts", fp)])

    def rollout(self, generation: int) -> Step:
        c, g = self.config, self.run.generation(generation)
        prompts = Dataset.open(self.run.prompts, "prompts")
        source = c.rollout.source
        model = c.models.teacher if source == "teacher" else self.snapshot(generation)
        max_len = self._max_len(prompts, c.rollout.max_new_tokens)
        self._check_vocabulary()
        fp = fingerprint(
            "rollouts",
            {
                "prompts": prompts.fingerprint,
                "vocabulary": self._vocabulary,
                "model": self.model(model) if source != "reference" else None,
                "settings": c.rollout.model_dump(mode="json", exclude=_ROLLOUT_SPEED),
                "max_len": max_len,
                "generation": generation,
                "seed": c.run.seed,
                "eos": self._eos(prompts),
                "dtype": self.device.dtype,
            },
        )
        job = RolloutJob(
            out=g.rollouts,
            fingerprint=fp,
            prompts=self.run.prompts,
            model=model,
            generation=generation,
            seed=c.run.seed,
            settings=c.rollout,
            device=self.device,
            max_model_len=max_len,
            eos_token_ids=self._eos(prompts),
            vocabulary=self._vocabulary,
        )
        return Step("rollout", "rollout", job, generation, [Dataset(g.rollouts, "rollouts", fp)])

    def annotate(self, generation: int, role: str) -> Step:
        c, g = self.config, self.run.generation(generation)
        rollouts = Dataset.open(g.rollouts, "rollouts")
        teacher = role == "teacher"
        model = c.models.teacher if teacher else self.snapshot(generation)
        inputs = {
            "rollouts": rollouts.fingerprint,
            "vocabulary": self._vocabulary,
            "model": self.model(model),
            "dtype": self.device.dtype,
            "settings": c.annotate.model_dump(mode="json", exclude=_ANNOTATE_SPEED),
            "role": role,
            "unconditioned": c.needs_scores,
        }
        fp, topk_fp = fingerprint("scores", inputs), fingerprint("topk", inputs)
        with_topk = teacher and c.train.loss.kd_weight > 0
        out = g.teacher_scores if teacher else g.student_scores
        job = AnnotateJob(
            out=out,
            fingerprint=fp,
            topk_out=g.topk if with_topk else None,
            topk_fingerprint=topk_fp if with_topk else None,
            prompts=self.run.prompts,
            rollouts=g.rollouts,
            model=model,
            vocabulary=self._vocabulary,
            role=role,  # type: ignore[arg-type]
            settings=c.annotate if teacher else c.annotate_student,
            device=self.device,
            unconditioned=c.needs_scores,
            compiled=self.compiled,
            longest=self._longest,
        )
        outputs = [Dataset(out, "scores", fp)] + ([Dataset(g.topk, "topk", topk_fp)] if with_topk else [])
        return Step(f"annotate_{role}", "annotate", job, generation, outputs)

    def select(self, generation: int) -> Step:
        c, g = self.config, self.run.generation(generation)
        scores = c.needs_scores
        teacher = Dataset.open(g.teacher_scores, "scores").fingerprint if scores else None
        student = Dataset.open(g.student_scores, "scores").fingerprint if scores else None
        fp = fingerprint(
            "selection",
            {
                "rollouts": Dataset.open(g.rollouts, "rollouts").fingerprint,
                "teacher": teacher,
                "student": student,
                "settings": c.select.model_dump(mode="json", exclude={"warn_keep_below"}),
            },
        )
        job = SelectJob(
            out=g.selection,
            fingerprint=fp,
            rollouts=g.rollouts,
            teacher_scores=g.teacher_scores if scores else None,
            student_scores=g.student_scores if scores else None,
            settings=c.select,
        )
        return Step("select", "select", job, generation, [Dataset(g.selection, "selection", fp)])

    def pack(self, generation: int) -> Step:
        c, g = self.config, self.run.generation(generation)
        where = self.span(generation)
        epochs = math.ceil(round((where.end or c.train.epochs) - where.start, 9))
        seed = c.run.seed * 1_000_003 + generation
        fp = fingerprint(
            "packs",
            {
                "selection": Dataset.open(g.selection, "selection").fingerprint,
                "settings": c.pack.model_dump(mode="json"),
                "epochs": epochs,
                "seed": seed,
                "group": c.train.global_batch,
            },
        )
        job = PackJob(
            out=g.packs,
            fingerprint=fp,
            prompts=self.run.prompts,
            rollouts=g.rollouts,
            selection=g.selection,
            epochs=epochs,
            first_epoch_seed=seed,
            group=c.train.global_batch,
            settings=c.pack,
        )
        return Step("pack", "pack", job, generation, [Dataset(g.packs, "packs", fp)])

    def train(self, generation: int) -> Step:
        c, g = self.config, self.run.generation(generation)
        where = self.span(generation)
        kd = c.train.loss.kd_weight > 0
        packs = Dataset.open(g.packs, "packs")  # first: without it there is no need to hash a large checkpoint
        before = self._done(generation - 1).get("fingerprint") if generation else self.model(c.models.student)
        declares = self._declaration()
        fp = fingerprint(
            "train",
            {
                "before": before,
                "vocabulary": self._vocabulary,
                "packs": packs.fingerprint,
                "topk": Dataset.open(g.topk, "topk").fingerprint if kd else None,
                "settings": c.train.model_dump(mode="json", exclude=_TRAIN_SPEED),
                "seed": c.run.seed,
                "sync": c.sync.model_dump(mode="json"),
                "span": [where.start, where.end, where.last],
                "dtype": self.device.dtype,
                "declares": declares.model_dump(mode="json", exclude={"tokenizer"}),
            },
        )
        job = TrainJob(
            prompts=self.run.prompts,
            rollouts=g.rollouts,
            topk=g.topk if kd else None,
            selection=g.selection,
            packs=g.packs,
            student=c.models.student,
            snapshot=self.snapshot(generation),
            checkpoints=self.run.checkpoints,
            out=g.train,
            metrics=self.run.metrics,
            fingerprint=fp,
            generation=generation,
            start_progress=where.start,
            end_progress=where.end,
            snapshot_progress=where.snapshot,
            last=where.last,
            pad_token_id=self.spec.pad_token_id,
            declares=declares,
            vocabulary=self._vocabulary,
            seed=c.run.seed,
            settings=c.train,
            row_length=c.pack.row_length,
            sync=c.sync,
            device=self.device,
            compiled=self.compiled,
            longest=self._longest,
        )
        return Step("train", "train", job, generation, done_file=g.done, snapshot=(g.snapshot_mark, g.next_snapshot))

    def eval_rollout(self, name: str, model: Path, generation: int) -> Step:
        """Answers to the held-out prompts: a rollout like any other."""
        c = self.config
        prompts = Dataset.open(self.run.eval_prompts, "prompts")
        settings = c.rollout.model_copy(
            update={
                "source": "student",
                "greedy": True,
                "samples": c.evaluate.samples,
                "temperature": c.evaluate.temperature,
                "max_new_tokens": c.evaluate.max_new_tokens or c.rollout.max_new_tokens,
            }
        )
        max_len = self._max_len(prompts, settings.max_new_tokens)
        vocabulary = int(prompts.extra["tokenizer_size"])
        self.spec.sharing(vocabulary, model)
        fp = fingerprint(
            "rollouts",
            {
                "prompts": prompts.fingerprint,
                "vocabulary": vocabulary,
                "model": self.model(model),
                "seed": c.run.seed,
                "dtype": self.device.dtype,
                "settings": settings.model_dump(mode="json", exclude=_ROLLOUT_SPEED),
                "max_len": max_len,
                "generation": generation,
                "eos": self._eos(prompts),
            },
        )
        out = self.run.evaluations / name.replace(" ", "-") / "rollouts"
        job = RolloutJob(
            out=out,
            fingerprint=fp,
            prompts=self.run.eval_prompts,
            model=model,
            generation=generation,
            seed=c.run.seed,
            settings=settings,
            device=self.device,
            max_model_len=max_len,
            eos_token_ids=self._eos(prompts),
            vocabulary=vocabulary,
        )
        return Step("rollout", "rollout", job, generation, [Dataset(out, "rollouts", fp)])

    def evaluate(self, name: str, generation: int) -> Step:
        c = self.config
        folder = self.run.evaluations / name.replace(" ", "-")
        fp = fingerprint(
            "evaluation",
            {
                "rollouts": Dataset.open(folder / "rollouts", "rollouts").fingerprint,
                "name": name,
                "settings": c.evaluate.model_dump(mode="json"),
                "tokenizer": _tokenizer_identity(self.tokenizer),
                "data": _file_identity(c.evaluate.checker_data) if c.evaluate.checker_data else None,
            },
        )
        out = self.run.evaluations / f"{name.replace(' ', '-')}.json"
        job = EvaluateJob(
            out=out,
            fingerprint=fp,
            prompts=self.run.eval_prompts,
            rollouts=folder / "rollouts",
            tokenizer=self.tokenizer,
            trust_remote_code=c.models.trust_remote_code,
            name=name,
            settings=c.evaluate,
            eos_token_ids=self._eos(Dataset.open(self.run.eval_prompts, "prompts")),
        )
        return Step("evaluate", "evaluate", job, generation, done_file=out)

    # ---- where the generations stand

    def span(self, generation: int) -> Span:
        """Start and end of a generation: planned where the policy fixes it, else as the one before has ended.

        Raises:
            UserError: the generation before decides its end by lag and has not ended.
        """
        start = 0.0
        if generation:
            planned = self.span(generation - 1).end
            if planned is None:
                planned = self._done(generation - 1).get("progress")
            if planned is None:
                raise UserError(f"generation {generation - 1} has not ended: train it first")
            start = planned
        return span(self.config, generation, start)

    def _done(self, generation: int) -> dict[str, Any]:
        return read_sealed(self.run.generation(generation).done) or {}

    def _eos(self, prompts: Dataset) -> list[int]:
        """Stop ids: those of both checkpoints and of the chat template, which a base model's config may not list."""
        return sorted({*self.spec.eos_token_ids, *prompts.extra["eos_token_ids"]})

    def _declaration(self) -> Declaration:
        prompts = Dataset.open(self.run.prompts, "prompts")
        end, extra = prompts.extra["end_token_id"], prompts.extra
        others = {*self._eos(prompts), *self.config.rollout.stop_token_ids} - {end}
        return Declaration(
            tokenizer=self.tokenizer,
            stop_token_ids=[end, *sorted(others)],
            chat_template=extra["chat_template"],
            special_tokens=extra["special_tokens"],
        )

    @property
    def _vocabulary(self) -> int:
        """Ids that the models share: those of the tokenizer. Logits may be wider, by padding."""
        return int(Dataset.open(self.run.prompts, "prompts").extra["tokenizer_size"])

    def _check_vocabulary(self) -> None:
        """Both models must have logits for all of it, and the teacher's best must be in it."""
        c, n = self.config, self._vocabulary
        self.spec.sharing(n, c.models.student)
        if c.needs_teacher:
            ModelSpec.from_folder(c.models.teacher).sharing(n, c.models.teacher)
            if c.annotate.k > n:
                raise UserError(f"annotate.k is {c.annotate.k} but the tokenizer of {self.tokenizer} has {n} ids; "
                                f"lower it")

    @property
    def _longest(self) -> int:
        """Tokens that a prompt and its answer may have."""
        return self._max_len(Dataset.open(self.run.prompts, "prompts"), self.config.rollout.max_new_tokens)

    def _max_len(self, prompts: Dataset, new_tokens: int) -> int:
        need = int(prompts.extra["longest_prompt"]) + new_tokens
        if int(prompts.extra["longest_prompt"]) >= self.spec.max_positions:
            raise UserError(
                f"the longest prompt has {prompts.extra['longest_prompt']} tokens but the student holds "
                f"{self.spec.max_positions} positions: lower data.max_prompt_tokens"
            )
        longest = min(need, self.spec.max_positions)
        reference = int(prompts.extra.get("longest_prompt_and_reference") or 0)
        if self.config.rollout.source == "reference":
            longest = max(longest if self.config.evaluate.prompts else 0, reference)
        if self.config.needs_teacher and longest > self.config.annotate.row_length:
            raise UserError(
                f"prompts and answers reach {longest} tokens but annotate.row_length is "
                f"{self.config.annotate.row_length}: raise it, or lower rollout.max_new_tokens "
                f"({new_tokens}) or data.max_prompt_tokens"
            )
        return longest


def _file_identity(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None


def _tokenizer_identity(folder: Path) -> str:
    found = {n: _file_identity(folder / n) for n in (*TOKENIZER_FILES, *COMPANIONS) if (folder / n).is_file()}
    if not found:
        raise UserError(f"{folder}: no tokenizer there (tokenizer.json or tokenizer.model); set models.tokenizer")
    return digest(found)


def _template_identity(setting: str) -> str | None:
    """Content of a template given by its path; a name of one of the models needs none beside their tokenizers'."""
    if setting in ("auto", "student", "teacher"):
        return None
    path = Path(setting)
    return _tokenizer_identity(path) if path.is_dir() else _file_identity(path)
