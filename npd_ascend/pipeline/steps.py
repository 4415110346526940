"""From configuration to jobs: what each stage is given, where it writes, what its output depends on.

This is the one place that knows both the run directory and the stages' contracts. A job's fields are filled by name:
the datasets that its stage reads (``config/stages.py`` says which), what every job may ask for, sections of settings by
their type. A stage whose job needs more has a method ``_tell_<module>`` here.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.config.job import Declaration, Device, Job, Target
from npd_ascend.config.schema import Config, Section
from npd_ascend.config.stages import DATA, QUANTITIES, STAGES, Stage
from npd_ascend.data.sources import expand
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.pipeline.fingerprints import Fingerprints, combined
from npd_ascend.recipes import asks, needs
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import seals_hold
from npd_ascend.store.layout import RunDir
from npd_ascend.sync.registry import Span, policy_of
from npd_ascend.tasks.judge import needs_answers, parts_of
from npd_ascend.tasks.registry import checker_of
from npd_ascend.train.job import TrainJob


@dataclass(frozen=True)
class _At:
    """Where in a run a stage is: generation (-1: in none) and name of the evaluation (empty: none)."""

    generation: int
    evaluation: str


@dataclass
class Step:
    """One stage of one generation, ready to run.

    Attributes:
        stage: its row of the table.
        job: its job.
        generation: which one; -1 for preparation.
        label: what tells it from others of this stage and generation.
        outputs: datasets that it finishes.
        done_file: or the JSON file that it writes last, holding its fingerprint.
        snapshot: mark and folder of the checkpoint that it exports.
    """

    stage: Stage
    job: Job
    generation: int
    label: str = ""
    outputs: list[Dataset] = field(default_factory=list)
    done_file: Path | None = None
    snapshot: tuple[Path, Path] | None = None

    @property
    def name(self) -> str:
        """For people and file names, e.g. ``g001-annotate_teacher``."""
        prefix = f"g{self.generation:03d}-" if self.generation >= 0 else ""
        return f"{prefix}{self.stage.name}{'-' + self.label.replace(' ', '-') if self.label else ''}"

    def passes(self) -> list[Step]:
        """The forward passes that this step takes, as steps that make what comes of each."""
        if not isinstance(self.job, AnnotateJob):
            return [self]
        parts = []
        for conditioned in (True, False):
            targets = {what: t for what, t in self.job.targets.items() if (what != "unconditioned") is conditioned}
            rest = dict.fromkeys(self.job.targets.keys() - targets.keys())
            if targets:
                folders = {t.folder for t in targets.values()}
                parts.append(
                    replace(
                        self,
                        job=self.job.model_copy(update=rest),
                        outputs=[d for d in self.outputs if d.folder in folders],
                    )
                )
        return parts

    @property
    def complete(self) -> bool:
        """Whether all its outputs exist, made from the same inputs."""
        if self.done_file is not None:
            done = read_sealed(self.done_file) or {}
            mine = done.get("fingerprint") == self.job.fingerprint
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
        alone: the student is a checkpoint that is only evaluated, whatever the teacher may be.
    """

    def __init__(self, config: Config, run: RunDir, device: Device, remember_hashes: bool = True, alone: bool = False):
        self.config, self.run, self.device, self.alone = config, run, device, alone
        self.fingerprints = Fingerprints(run.hashes if remember_hashes else None)
        self.tokenizer = config.models.tokenizer or config.models.student

    @cached_property
    def spec(self) -> ModelSpec:
        """Architecture of the student."""
        return ModelSpec.from_folder(self.config.models.student)

    def step(self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = "") -> Step:
        """A stage with its job.

        Args:
            stage: name of ``config.stages.STAGES``.
            generation: which one.
            quantities: for annotation: what to store.
            evaluation: for evaluation: its name.

        Raises:
            UserError: an input is not there yet.
        """
        row, at = STAGES[stage], _At(generation, evaluation)
        values = self._inputs(row, at) | self._common(row, at)
        if more := getattr(self, f"_tell_{row.module}", None):
            values |= more(row, at)
        fields = row.job.model_fields
        settings = {name: s for name in fields if name not in values and (s := self._section(fields[name].annotation))}
        job = row.job(**settings, **{name: v for name, v in values.items() if name in fields}, fingerprint="")
        if isinstance(job, AnnotateJob):
            return self._annotation(row, job, generation, quantities)
        (found,) = self.fingerprints.of(job, row.writes[0] if row.writes else stage)
        job = job.model_copy(update={"fingerprint": found})
        step = Step(row, job, generation, evaluation)
        if row.writes:
            step.outputs = [Dataset(values["out"], DATA[row.writes[0]].kind, job.fingerprint)]
        elif isinstance(job, TrainJob):
            g = self.run.generation(generation)
            step.done_file, step.snapshot = g.done, (g.snapshot_mark, g.next_snapshot)
        else:
            step.done_file = values["out"]
        return step

    def _annotation(self, row: Stage, job: AnnotateJob, generation: int, quantities: Collection[str]) -> Step:
        """Each quantity has a fingerprint of its own, so that one which is asked for later is made alone."""
        asked = [name for name in row.writes if name in quantities]
        outputs = {
            name: Dataset(self.run.data(name, generation), DATA[name].kind, found)
            for name, found in zip(asked, self.fingerprints.of(job, *asked), strict=True)
        }
        targets = {
            QUANTITIES[name].target: Target(folder=d.folder, fingerprint=d.fingerprint) for name, d in outputs.items()
        }
        both = combined([d.fingerprint for d in outputs.values()])
        return Step(
            row, job.model_copy(update={**targets, "fingerprint": both}), generation, outputs=list(outputs.values())
        )

    # ---- what jobs are given

    def _inputs(self, row: Stage, at: _At) -> dict[str, Any]:
        """Folders of the datasets that a stage reads; of a stored quantity only where it is needed."""
        asked = needs(self.config, row.name)
        folders = {name: self.run.data(name, at.generation) for name in asked}
        fields = {
            name: self.run.data(self._drawn(data, row, at), at.generation, at.evaluation)
            for name, data in row.reads.items()
            if data in DATA
        }
        return {**fields, **dict.fromkeys(QUANTITIES), **folders, "quantities": folders}

    def _drawn(self, data: str, row: Stage, at: _At) -> str:
        """Of the prompts, those of the generation, where each has its own."""
        own = data == "prompts" and at.generation >= 0 and "drawn" not in row.writes
        return "drawn" if own and self.config.data.slice else data

    def _common(self, row: Stage, at: _At) -> dict[str, Any]:
        """What any job may ask for."""
        c = self.config
        return {
            "out": (
                self.run.data(row.writes[0], at.generation, at.evaluation)
                if row.writes
                else self.run.note(row.name, at.generation)
            ),
            "generation": at.generation,
            "seed": c.run.seed,
            "device": self.device,
            "compiled": self.run.compiled.resolve(),
            "tokenizer": self.tokenizer,
            "trust_remote_code": c.models.trust_remote_code,
            "metrics": self.run.metrics,
            "name": at.evaluation,
        }

    def _section(self, kind: Any) -> Section | None:
        """The section of settings of this type."""
        return next(
            (getattr(self.config, key) for key, f in type(self.config).model_fields.items() if f.annotation is kind),
            None,
        )

    def _tell_data(self, row: Stage, at: _At) -> dict[str, Any]:
        c, held_out = self.config, row.name == "prepare_eval"
        limit = c.evaluate.limit if held_out else c.data.limit
        return {
            "files": expand(c.evaluate.prompts, "test") if held_out else expand(c.data.prompts),
            "settings": c.data.model_copy(update={"limit": limit}),
            "limit": limit,
            "shard_size": c.rollout.shard_size,
            "need_reference": not held_out and c.rollout.source == "reference",
            "need_answer": held_out or needs_answers(c) is not None,
            "student": c.models.student,
            "teacher": c.models.teacher,
            "teacher_needed": not self.alone and (asks(c, "teacher") or c.rollout.source == "teacher"),
        }

    def _tell_draw(self, row: Stage, at: _At) -> dict[str, Any]:
        c, prompts = self.config, self._prompts.rows
        if (c.data.slice or 0) > prompts:
            raise UserError(f"data.slice is {c.data.slice}, but there are {prompts} prompts; lower it, or leave it out")
        return {"count": c.data.slice, "shard_size": c.rollout.shard_size}

    def _tell_reward(self, row: Stage, at: _At) -> dict[str, Any]:
        return {
            "parts": parts_of(self.config),
            "workers": self.config.reward.workers,
            "eos_token_ids": self._eos(self._prompts),
        }

    def _tell_select(self, row: Stage, at: _At) -> dict[str, Any]:
        if not self.config.reward.parts:
            return {}
        return {"rewards": self.run.data("rewards", at.generation), "advantage": self.config.reward.advantage}

    def _tell_rollout(self, row: Stage, at: _At) -> dict[str, Any]:
        """Held-out prompts are answered as the training prompts are, by the student and greedily."""
        c, settings, model = self.config, self.config.rollout, self.snapshot(at.generation)
        if row.name == "evaluate_rollout":
            settings = settings.model_copy(
                update={
                    "source": "student",
                    "greedy": True,
                    "samples": c.evaluate.samples,
                    "temperature": c.evaluate.temperature,
                    "max_new_tokens": c.evaluate.max_new_tokens or c.rollout.max_new_tokens,
                }
            )
        elif settings.source == "teacher":
            model = c.models.teacher
        prompts = Dataset.open(self.run.data(row.reads["prompts"]), "prompts")
        return {
            "model": model,
            "settings": settings,
            "max_model_len": self.longest(prompts, settings.max_new_tokens),
            "eos_token_ids": self._eos(prompts),
            "vocabulary": self._checked_vocabulary(prompts, annotated=row.name == "rollout"),
        }

    def _tell_annotate(self, row: Stage, at: _At) -> dict[str, Any]:
        c, role = self.config, row.name.removeprefix("annotate_")
        settings, model = (
            (c.annotate, c.models.teacher) if role == "teacher" else (c.annotate_student, self.snapshot(at.generation))
        )
        if c.rollout.source != "student":  # then the rollouts' log-probs are not the student's
            settings = settings.model_copy(update={"student_nll": "prefill"})
        return {
            "role": role,
            "model": model,
            "settings": settings,
            "vocabulary": _vocabulary(self._prompts),
            "longest": self._longest,
        }

    def _tell_pack(self, row: Stage, at: _At) -> dict[str, Any]:
        c, where = self.config, self.span(at.generation)
        return {
            "epochs": math.ceil(round((where.end or c.train.epochs) - where.start, 9)),
            "first_epoch_seed": c.run.seed * 1_000_003 + at.generation,
            "group": c.train.global_batch,
        }

    def _tell_train(self, row: Stage, at: _At) -> dict[str, Any]:
        where = self.span(at.generation)
        return {
            "student": self.config.models.student,
            "snapshot": self.snapshot(at.generation),
            "checkpoints": self.run.checkpoints,
            "out": self.run.generation(at.generation).train,
            "before": self.done(at.generation - 1).get("fingerprint") if at.generation else None,
            "start_progress": where.start,
            "end_progress": where.end,
            "snapshot_progress": where.snapshot,
            "last": where.last,
            "pad_token_id": self.spec.pad_token_id,
            "vocabulary": _vocabulary(self._prompts),
            "declares": self._declaration(self._prompts),
            "row_length": self.config.pack.row_length,
            "longest": self._longest,
        }

    def _tell_evaluate(self, row: Stage, at: _At) -> dict[str, Any]:
        return {
            "out": self.run.evaluation(at.evaluation),
            "settings": self.config.evaluate.model_copy(update={"checker": checker_of(self.config)}),
            "eos_token_ids": self._eos(Dataset.open(self.run.eval_prompts, "prompts")),
        }

    def _eos(self, prompts: Dataset) -> list[int]:
        """Stop ids: those of both checkpoints and of the chat template, which a base model's config may not list."""
        return sorted({*self.spec.eos_token_ids, *prompts.extra["eos_token_ids"]})

    def _declaration(self, prompts: Dataset) -> Declaration:
        extra = prompts.extra
        others = {*self._eos(prompts), *self.config.rollout.stop_token_ids} - {extra["end_token_id"]}
        return Declaration(
            tokenizer=self.tokenizer,
            stop_token_ids=[extra["end_token_id"], *sorted(others)],
            chat_template=extra["chat_template"],
            special_tokens=extra["special_tokens"],
        )

    def _checked_vocabulary(self, prompts: Dataset, annotated: bool) -> int:
        """All models that are asked must have logits for all of it, and the teacher's best must be in it."""
        c, n = self.config, _vocabulary(prompts)
        self.spec.sharing(n, c.models.student)
        if annotated and asks(c, "teacher"):
            ModelSpec.from_folder(c.models.teacher).sharing(n, c.models.teacher)
            if c.annotate.k > n:
                raise UserError(
                    f"annotate.k is {c.annotate.k} but the tokenizer of {self.tokenizer} has {n} ids; lower it"
                )
        return n

    @property
    def _prompts(self) -> Dataset:
        return Dataset.open(self.run.prompts, "prompts")

    @property
    def _longest(self) -> int:
        return self.longest(self._prompts, self.config.rollout.max_new_tokens)

    # ---- where the generations stand

    def snapshot(self, generation: int) -> Path:
        """HF folder of the student that answers in this generation."""
        return self.config.models.student if generation == 0 else self.run.generation(generation - 1).next_snapshot

    def span(self, generation: int) -> Span:
        """Start and end of a generation: planned where the policy fixes it, else as the one before has ended.

        Raises:
            UserError: the generation before decides its end while training and has not ended.
        """
        start = 0.0
        if generation:
            planned = self.span(generation - 1).end
            if planned is None:
                planned = self.done(generation - 1).get("progress")
            if planned is None:
                raise UserError(f"generation {generation - 1} has not ended: train it first")
            start = planned
        return policy_of(self.config).span(generation, start)

    def done(self, generation: int) -> dict[str, Any]:
        """What a generation's training has left as its outcome; empty before it has ended."""
        return read_sealed(self.run.generation(generation).done) or {}

    def longest(self, prompts: Dataset, new_tokens: int) -> int:
        """Tokens that a prompt and its answer may have.

        Raises:
            UserError: the student, or a row of annotation, does not hold them.
        """
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
        if needs(self.config) and longest > self.config.annotate.row_length:
            raise UserError(
                f"prompts and answers reach {longest} tokens but annotate.row_length is "
                f"{self.config.annotate.row_length}: raise it, or lower rollout.max_new_tokens "
                f"({new_tokens}) or data.max_prompt_tokens"
            )
        return longest


def _vocabulary(prompts: Dataset) -> int:
    """Ids that the models share: those of the tokenizer. Logits may be wider, by padding."""
    return int(prompts.extra["tokenizer_size"])
