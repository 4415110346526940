"""Runs one arm: the stages of an ordinary run called one after the other in this process, or the synchronous loop."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.arrays import Array
from npd_ascend.config.schema import Config
from npd_ascend.config.study import Arm
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf, save_hf
from npd_ascend.ops.environments import resolve_device
from npd_ascend.pipeline.checks import check_config
from npd_ascend.pipeline.steps import Step, StepBuilder
from npd_ascend.recipes import find
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.store.atomic import write_bytes
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics
from npd_ascend.study.batches import Layout
from npd_ascend.study.clock import ASIDE, Clock
from npd_ascend.study.dataset_cache import DatasetCache
from npd_ascend.study.live import LiveLoop, LiveSource
from npd_ascend.study.method import live_method
from npd_ascend.study.prompts import Prompts, live_job
from npd_ascend.study.results import TOTAL, Recorder, Results, identity
from npd_ascend.study.watch import Watch
from npd_ascend.study.workbench import Workbench
from npd_ascend.train.checkpoint import State
from npd_ascend.train.job import TrainJob
from npd_ascend.train.reader import loss_shape
from npd_ascend.train.step import Trainer


def run_arm(arm: Arm, root: Path, bench: Workbench, scratch: Path) -> None:
    """Runs an arm from the start; its rows then stand in ``Results(root).own(arm)``.

    Args:
        arm: the arm.
        root: study directory.
        bench: what this process keeps.
        scratch: folder for weights on their way to the engine; in memory, best.

    Raises:
        UserError: something in the configuration or the data has to be mended.
    """
    shutil.rmtree(arm.config.run.dir, ignore_errors=True)
    clock = bench.clock = Clock()
    try:
        _Run(arm, root, bench, scratch, clock).run()
    finally:
        bench.watch = None
        shutil.rmtree(arm.config.run.dir, ignore_errors=True)


class _Run:
    def __init__(self, arm: Arm, root: Path, bench: Workbench, scratch: Path, clock: Clock):
        self.arm, self.bench, self.clock, self.scratch = arm, bench, clock, scratch
        self.results = Results(root)
        self.config = _resolved(arm, root, self.results)
        check_config(self.config)
        self.dir = RunDir(self.config.run.dir)
        self.device = resolve_device(self.config.device)
        self.steps = StepBuilder(self.config, self.dir, self.device)
        self.record = Recorder(self.results.own(arm), arm)
        self.cache = DatasetCache(root / "cache")
        self.spec = ModelSpec.from_folder(self.config.models.student)
        self.counts: dict[str, int] = {}

    def run(self) -> None:
        with self.clock.on("prepare"):
            self("prepare")
            self("prepare_eval")
            self.prompts = Prompts.read(Dataset.open(self.dir.prompts, "prompts"))
            self.held_out = Prompts.read(Dataset.open(self.dir.eval_prompts, "prompts"))
            self.spec = self.spec.sharing(self.prompts.vocabulary, self.config.models.student)
        self.job = live_job(self.config, self.device, self.spec, [self.prompts, self.held_out])
        self.bench.ready(self.job, self.prompts.ids[0])
        resolved = replace(self.arm, config=self.config)
        self.watch = Watch(resolved, self.bench, self.job, self.held_out, self.record, self.cache, self.scratch)
        try:
            self.watch.start()
            method = live_method(self.arm.method)
            if method is None:
                self._stored()
            else:
                self._live(method)
            self._end()
        finally:
            self.watch.close()

    # ---- data made beforehand

    def _stored(self) -> None:
        self.bench.watch = self._stepped
        find(self.config.run.recipe)(self.config, self)
        for row in read_metrics(self.dir.metrics):
            if row["kind"] == "lag":
                self.record.log(
                    "lag",
                    row["step"],
                    row["progress"],
                    0.0,
                    self._seen(row["progress"]),
                    forward=row["forward"],
                    reverse=row["reverse"],
                    generation=row["generation"],
                )

    # ---- what a recipe asks for

    def __call__(
        self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
    ) -> None:
        if evaluation:
            return  # the watch measures, at points of its own
        step = self.steps.step(stage, generation, quantities=quantities)
        if step.complete:
            return
        for part in step.passes():
            self._part(part)
        if not step.complete:
            raise UserError(f"{self.arm.key}: {step.name} ended without finishing its output")
        if stage == "select":
            self._log_selection(generation)

    def refresh(self, generation: int) -> bool:
        return not self.steps.span(generation).last and self.steps.done(generation).get("reason") != "epochs"

    def export(self, generation: int) -> None:
        """An arm's student is measured in place, and kept where another arm begins with it."""
        if self.arm.kept:
            self.results.keep(self.arm, self.dir.generation(generation).next_snapshot)

    def _part(self, step: Step) -> None:
        """Runs a stage, or one forward pass of it; or takes what it would make from the cache and charges what that
        took."""
        heading = step.stage.heading
        seconds = None if self.arm.timed and heading != "prepare" else self.cache.take(step)
        if seconds is not None and step.complete:
            return self.clock.charge(heading, seconds)
        before = self.clock.totals[heading]
        with self.clock.on(heading):
            self._do(step)
        if step.complete:
            self.cache.put(step, self.clock.totals[heading] - before)

    def _do(self, step: Step) -> None:
        """The stage in this process, with what the bench keeps for it."""
        job, bench = step.job, self.bench
        if isinstance(job, RolloutJob) and job.settings.source != "reference":
            if job.settings.source == "teacher":
                bench.ready(job, self.prompts.ids[0])
            bench.pool(job.model).run(job)
            bench.dismiss(job.model, self.config.models.student)
        else:
            kept = {AnnotateJob: (bench.scorer,), TrainJob: (bench,)}.get(type(job), ())
            importlib.import_module(f"npd_ascend.{step.stage.module}.stage").run(job, *kept)

    def _stepped(self, state: State, trainer: Trainer) -> None:
        row = state.train or {}
        self.watch.stepped(trainer.net, state.step, state.progress, self._seen(state.progress), row)
        self._count("train", len(self.prompts), int(row.get("tokens", 0)))

    def _log_selection(self, generation: int) -> None:
        found = Dataset.open(self.dir.generation(generation).selection, "selection").extra
        start = self.steps.span(generation).start
        where: dict[str, Any] = {
            "step": 0,
            "progress": start,
            "seconds": self.clock.seconds,
            "prompts": self._seen(start),
        }
        zones = {z: v["share"] for z, v in found["zones"].items()}
        self.record.log(
            "zones",
            **where,
            generation=generation,
            below=zones["degenerate"],
            inside=zones["proximal"],
            above=zones["disconnect"],
            undefined=zones["undefined"],
            kept=found["keep_rate"],
            zone_upper=found["zone_upper"],
            samples=found["samples"],
            filter=found["filter"],
        )
        if found["delta_ifd"]:
            self.record.log(
                "scores", **where, generation=generation, delta_ifd=found["delta_ifd"], bounds=found["bounds"]
            )
        if groups := found.get("groups"):
            self.record.log("reward", **where, generation=generation, **groups)

    def _seen(self, progress: float) -> int:
        """Prompts that were trained on after so many epochs; an epoch is one over those of the generation."""
        return round(progress * (self.config.data.slice or len(self.prompts)))

    # ---- data made at each step

    def _live(self, kind: Callable[..., Any]) -> None:
        c, bench, arm = self.config, self.bench, self.arm
        method, longest = kind(arm.live, c.train), self._longest()
        layout = Layout.of(
            arm.live,
            arm.live.prompts_per_step * method.samples_per_prompt,
            c.pack.row_length,
            c.train.micro_batch,
            self.prompts.ids,
            longest,
            self.spec.pad_token_id,
        )
        row = max(*layout.lengths, c.pack.row_length)
        most = layout.head_rows(layout.lengths[-1])
        _, chunk = loss_shape(most, most, c.train.vocab_chunk_rows)
        trainer = bench.live_trainer(self.spec, self.device, row, longest, c.train, chunk, method.whole_vocabulary)
        spec = ModelSpec.from_folder(c.models.teacher).sharing(self.prompts.vocabulary, c.models.teacher)
        teacher = bench.network(c.models.teacher, spec, self.device, row, longest, "live")
        dev = self.held_out.first(arm.live.dev_samples)
        source = LiveSource(
            bench,
            self.job,
            trainer,
            self.prompts,
            self._teacher_answers,
            self.scratch / "live",
            c.models.student,
            lambda: self.watch.loss(trainer.net, dev),
        )
        loop = LiveLoop(
            c,
            method,
            source,
            layout,
            bench.prefill(teacher),
            bench.prefill(trainer.net),
            self.clock,
            lambda step, progress, prompts, row: self.watch.stepped(trainer.net, step, progress, prompts, row),
        )
        loop.compile(bench)
        load_hf(trainer.net, c.models.student)
        loop.run()
        if arm.kept:
            save_hf(trainer.net, self.results.student(arm), c.models.student, self.device.dtype)
        self._count("train", loop.steps * arm.live.prompts_per_step, loop.tokens)
        self._count("rollout", source.answered, 0)
        shutil.rmtree(source.weights, ignore_errors=True)
        self.record.log(
            "note",
            loop.steps,
            c.train.epochs,
            self.clock.seconds,
            loop.steps * arm.live.prompts_per_step,
            text=f"{loop.tokens} response tokens in {loop.positions} computed positions",
            density=loop.tokens / max(1, loop.positions),
        )

    def _longest(self) -> int:
        """Tokens that a prompt and its answer may have, references included."""
        reference = max(
            (len(p) + len(r) for p, r in zip(self.prompts.ids, self.prompts.references, strict=True)), default=0
        )
        return max(self.job.max_model_len, reference)

    def _teacher_answers(self) -> list[Array]:
        with self.clock.on("start"):
            answers, seconds = self.watch.teacher_answers(self.prompts)
        self.clock.charge("rollout", seconds)
        return answers

    # ---- ends

    def _count(self, heading: str, samples: int, tokens: int) -> None:
        self.counts[f"{heading} samples"] = samples
        self.counts[f"{heading} tokens"] = self.counts.get(f"{heading} tokens", 0) + tokens

    def _end(self) -> None:
        total, totals = self.clock.seconds, dict(self.clock.totals)
        c = self.config
        at: dict[str, Any] = {"step": 0, "progress": c.train.epochs, "prompts": self._seen(c.train.epochs)}
        for heading, seconds in totals.items():
            self.record.log(
                "time",
                **at,
                seconds=seconds,
                stage=heading,
                aside=heading in ASIDE,
                tokens=self.counts.get(f"{heading} tokens"),
                samples=self.counts.get(f"{heading} samples"),
            )
        self.record.log(
            "time",
            **at,
            seconds=total,
            stage=TOTAL,
            aside=False,
            identity=identity(self.arm),
            timed=self.arm.timed,
            wall=round(sum(totals.values()), 3),
            method=self.arm.method,
            epochs=c.train.epochs,
        )


def _resolved(arm: Arm, root: Path, results: Results) -> Config:
    """The arm's configuration with the models that other arms have made, and its seed's own draw of the task's prompts
    in place of their files."""
    made = {role: results.student(maker) for role, maker in arm.makers.items()}
    config = arm.config.model_copy(update={"models": arm.config.models.model_copy(update=made)})
    if arm.subset is None:
        return config
    rows: list[str] = []
    for file in config.data.prompts:
        try:
            rows += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"tasks.{arm.task}: {file} cannot be read as JSON lines ({e})") from None
    if arm.subset > len(rows):
        raise UserError(f"tasks.{arm.task}.prompts is {arm.subset} but its files have {len(rows)} rows; lower it")
    chosen = np.sort(np.random.default_rng([arm.seed, 1]).choice(len(rows), arm.subset, replace=False))
    path = root / "prompts" / f"{arm.task}-{arm.subset}-{arm.seed}.jsonl"
    write_bytes(path, "".join(f"{json.dumps(json.loads(rows[i]))}\n" for i in chosen).encode())
    return config.model_copy(update={"data": config.data.model_copy(update={"prompts": [path], "limit": None})})
