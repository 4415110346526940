"""A whole run: generations from left to right, training, sparse updates, resume.

Nothing here is remembered between runs: each step asks its datasets whether they are complete and made from
these inputs, so starting again is the same as going on.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npd_ascend import __version__
from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import Environments, resolve_device
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.ops.plan import check_room
from npd_ascend.pipeline.checks import check_config, check_run_dir
from npd_ascend.pipeline.orders import Running
from npd_ascend.pipeline.runner import Runner, ShardLost
from npd_ascend.pipeline.steps import Step, StepBuilder
from npd_ascend.progress import message
from npd_ascend.report.build import build as build_report
from npd_ascend.report.live import LiveView
from npd_ascend.report.tensorboard import export as export_tensorboard
from npd_ascend.report.warnings import rise_of_truncated
from npd_ascend.store.atomic import atomic_folder, read_sealed, sweep, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import seals_hold
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

_MAX_REGENERATIONS = 20
_POLL_S = 0.2
_STAGES = ("prepare", "rollout", "annotate", "annotate_teacher", "annotate_student", "select", "pack", "train")


class Stopped(BaseException):
    """SIGTERM or SIGINT: leave in order."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Conductor:
    """Runs a configuration in its run directory.

    Args:
        config: the resolved configuration.
        redo: a changed configuration is accepted for an existing run; what depends on the change is made again.
        view: live view; a new one when not given.
    """

    def __init__(self, config: Config, redo: bool = False, view: LiveView | None = None):
        self.config, self.redo = config, redo
        self.run_dir = RunDir(config.run.dir)
        self.device = resolve_device(config.device)
        self.placement, self.nodes = Placement.of(config, self.device.target), Nodes.from_environment()
        self.steps = StepBuilder(config, self.run_dir, self.device)
        self._view = view or LiveView()
        self._training: tuple[Step, Running, float] | None = None

    def run(self, stage: str | None = None) -> None:
        """Runs everything that is not there yet, or one stage of the first generation that lacks it.

        Raises:
            UserError: something has to be mended; all that was finished stays.
            Stopped: a signal arrived; all processes are gone.
        """
        if stage and stage not in _STAGES:
            raise UserError(f"--stage {stage}: there is no such stage; known: {', '.join(_STAGES)}")
        check_config(self.config)
        self.placement.check(self.config, self.nodes.count)
        check_room(self.config)
        self.run_dir.lock()
        try:
            check_run_dir(self.config, self.run_dir, self.redo)
            sweep(self.run_dir.root)
            self.runner = Runner(
                self.config, self.run_dir, Environments.find(), self._view, self.placement, self.nodes
            )
            previous = {n: signal.signal(n, _stop) for n in (signal.SIGTERM, signal.SIGINT)}
            started = self.run_dir.read_state().get("started", time.time())
            self.run_dir.write_state(status="running", started=started, error="", environment=self._facts())
            status: dict[str, Any] = {"status": "stopped"}
            done = False
            try:
                self.runner.start()
                self._mending(lambda: self._one_stage(stage) if stage else self._generations())
                done = True
                if not stage:
                    status = {"status": "finished"}
            except (UserError, OSError) as e:
                status = {"status": "failed", "error": str(e)}
                raise
            finally:
                for n in previous:  # a second signal must not interrupt the clean-up
                    signal.signal(n, signal.SIG_IGN)
                self.runner.close("" if done else str(status.get("error", "stopped")))
                self._conclude(status)
                for n, handler in previous.items():
                    signal.signal(n, handler)
            if self.config.report.tensorboard:
                export_tensorboard(self.run_dir.root)
        finally:
            self.run_dir.unlock()

    def _conclude(self, status: dict[str, Any]) -> None:
        """Last state and report; where these cannot be written, an error that is already on its way says why."""
        try:
            self.run_dir.write_state(**status, ended=time.time())
            build_report(self.run_dir.root)
        except OSError:
            if status["status"] == "finished":
                raise

    def _facts(self) -> dict[str, Any]:
        """Where this runs, for the report."""
        return {
            "npd_ascend": __version__,
            "device": f"{self.device.target}, {self.device.dtype}",
            "placement": self.placement.describe() + (f"; {self.nodes.count} nodes" if self.nodes.count > 1 else ""),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "python": platform.python_version(),
        }

    # ---- the line

    def _mending(self, work: Callable[[], None]) -> None:
        """Does the work; a damaged shard is taken back and the work begun anew."""
        for _ in range(_MAX_REGENERATIONS):
            try:
                return work()
            except ShardLost as lost:
                self._drop_training()
                self._discard(lost)
        raise UserError(f"{self.run_dir.root}: shards keep being damaged ({_MAX_REGENERATIONS} times): check the disk")

    def _generations(self) -> None:
        self.runner.run_step(self.steps.prepare())
        if self.config.evaluate.prompts:
            self.runner.run_step(self.steps.prepare(evaluation=True))
        generation = 0
        while True:
            self._data(generation)
            self._join_training()
            self.runner.run_step(self.steps.pack(generation))
            train = self.steps.train(generation)
            if not train.complete:
                self._start_training(train)
            if self.steps.span(generation).last:
                break
            self._await_snapshot(train)
            if self._training is None and self._done(generation)["reason"] == "epochs":
                break  # the run was over before the lag asked for a refresh
            generation += 1
        self._join_training()
        self._export(generation)
        self._evaluate("end", self.run_dir.export, generation + 1)

    def _data(self, generation: int) -> None:
        """Everything of a generation that needs its snapshot only."""
        c = self.config
        rollout = self.steps.rollout(generation)
        if not rollout.complete:
            self.runner.run_step(rollout)
            self._compare_truncated(generation)
        if generation == 0:
            self._evaluate("start", self.steps.snapshot(0), 0)
        elif c.evaluate.at_sync:
            self._evaluate(f"sync {generation}", self.steps.snapshot(generation), generation)
        if c.needs_teacher:
            self.runner.run_step(self.steps.annotate(generation, "teacher"))
        if c.needs_scores:
            self.runner.run_step(self.steps.annotate(generation, "student"))
        self.runner.run_step(self.steps.select(generation))

    def _compare_truncated(self, generation: int) -> None:
        """Says at once, and not only in the report, when the student stops less often than a generation ago."""
        if generation == 0:
            return
        folders = [self.run_dir.generation(g).rollouts for g in (generation - 1, generation)]
        before, now = (d.extra["truncated"] / max(d.rows, 1) for d in (Dataset.open(f, "rollouts") for f in folders))
        if line := rise_of_truncated(generation, before, now):
            message(line, level="warning")

    def _evaluate(self, name: str, model: Path, generation: int) -> None:
        if not self.config.evaluate.prompts:
            return
        self.runner.run_step(self.steps.eval_rollout(name, model, generation), stage="evaluate")
        step = self.steps.evaluate(name, generation)
        if not step.complete:
            self.runner.run_step(step)
        rows = read_metrics(self.run_dir.metrics)
        if not any(r["kind"] == "evaluate" and r.get("name") == name for r in rows):
            self._log_evaluation(name, step)

    def _log_evaluation(self, name: str, step: Step) -> None:
        assert step.done_file is not None
        result = read_sealed(step.done_file) or {}
        self.runner.metrics.log(
            "evaluate",
            name=name,
            generation=step.generation,
            accuracy=result.get("accuracy"),
            interval=result.get("interval"),
            n=result.get("n"),
        )

    # ---- training in the background

    def _start_training(self, step: Step) -> None:
        self.runner.monitor.reset("train")
        self._training = (step, self.runner.launch(step), time.time())

    def _await_snapshot(self, train: Step) -> None:
        """Until the next generation's snapshot stands, or training has ended (without ``lead`` both are one)."""
        if self.config.sync.lead == 0:
            return self._join_training()
        mark = self.run_dir.generation(train.generation).snapshot_mark
        while self._training and self._training[1].poll() is None:
            if (read_sealed(mark) or {}).get("fingerprint") == train.job.fingerprint:  # type: ignore[attr-defined]
                return
            time.sleep(_POLL_S)
        self._join_training()

    def _join_training(self) -> None:
        if self._training is None:
            return
        step, child, start = self._training
        try:
            self.runner.finish(step, child)
        finally:
            self._training = None
            ended = self._training_ended(step)
            self.runner.book(step, max(0.0, ended - start), ended=ended)
        if not self.steps.span(step.generation).last:
            self._log_sync(step.generation)

    def _training_ended(self, step: Step) -> float:
        """When it was done, which may be long before somebody waits for it; now, if it has failed."""
        if step.complete and step.done_file is not None:
            return min(time.time(), step.done_file.stat().st_mtime)
        return time.time()

    def _drop_training(self) -> None:
        if self._training is not None:
            self._training[1].stop()
            self._training = None

    def _log_sync(self, generation: int) -> None:
        done = self._done(generation)
        following = generation + 1
        rows = read_metrics(self.run_dir.metrics)
        if not any(r["kind"] == "sync" and r.get("generation") == following for r in rows):
            self.runner.metrics.log(
                "sync",
                step=done.get("step"),
                progress=done.get("progress"),
                generation=following,
                reason=done.get("reason"),
            )

    def _done(self, generation: int) -> dict[str, Any]:
        return read_sealed(self.run_dir.generation(generation).done) or {}

    # ---- ends

    def _export(self, generation: int) -> None:
        """The final student, as a Hugging Face folder in ``<run>/export``."""
        last, target, mark = self.run_dir.generation(generation), self.run_dir.export, self.run_dir.export_mark
        seals = (read_sealed(last.snapshot_mark) or {}).get("files")
        known = (read_sealed(mark) or {}).get("files")
        if known == seals and seals_hold(target, seals):
            return
        if known == seals:
            message(f"{target} is damaged: made again", level="warning")
        mark.unlink(missing_ok=True)
        with atomic_folder(target) as tmp:
            shutil.copytree(last.next_snapshot, tmp, dirs_exist_ok=True)
            if not seals_hold(tmp, seals):
                raise ShardLost(str(last.next_snapshot), -1, f"{last.next_snapshot}: damaged")
        write_sealed(mark, {"files": seals})

    def _discard(self, lost: ShardLost) -> None:
        """Takes back a damaged shard and everything of the same samples that was made from it."""
        folder = lost.dataset.resolve()
        root = self.run_dir.root.resolve()
        if root not in folder.parents:
            foreign = f"{lost.dataset}: shard {lost.index} is damaged and does not belong to this run"
            raise UserError(str(lost) if lost.index < 0 else foreign)
        if lost.index < 0:  # its step finds it incomplete
            return message(f"{lost.dataset} is damaged: made again", level="warning")
        kind = {"scores_teacher": "scores", "scores_student": "scores", "train": "prompts", "eval": "prompts"}.get(
            folder.name, folder.name
        )
        Dataset(folder, kind, "").discard(lost.index)
        if kind == "rollouts" and folder.parent.parent.name == "generations":
            for name in ("scores_teacher", "scores_student", "topk", "selection"):
                other = folder.parent / name
                Dataset(other, name.split("_")[0], "").discard(lost.index)

    def _one_stage(self, stage: str) -> None:
        """Runs one stage for the first generation in which it is not complete."""
        if stage == "prepare":
            return self.runner.run_step(self.steps.prepare())
        makers = {
            "rollout": self.steps.rollout,
            "select": self.steps.select,
            "pack": self.steps.pack,
            "annotate_teacher": lambda g: self.steps.annotate(g, "teacher"),
            "annotate_student": lambda g: self.steps.annotate(g, "student"),
            "train": self.steps.train,
        }
        names = ["annotate_teacher", "annotate_student"] if stage == "annotate" else [stage]
        generation = 0
        while True:
            ran = False
            for name in names:
                step = makers[name](generation)
                if not step.complete:
                    self.runner.run_step(step)
                    ran = True
            done = self.run_dir.generation(generation).done.is_file()
            if ran or not done or self.steps.span(generation).last:
                return
            generation += 1


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def exit_code(e: BaseException) -> int:
    """What the command returns for an error of ``Conductor.run``."""
    if isinstance(e, Stopped):
        return 128 + e.number
    return getattr(e, "exit_code", os.EX_SOFTWARE)
