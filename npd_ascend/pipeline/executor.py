"""Carries out a recipe in its run directory: stages one after the other, training in the background, resume, mending.

Nothing here is remembered between runs: each step asks its datasets whether they are complete and made from
these inputs, so starting again is the same as going on. And nothing here knows what a recipe is for.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from npd_ascend import __version__
from npd_ascend.config import Config
from npd_ascend.config.stages import STAGES, check_stage, followers, named
from npd_ascend.environments import Environments
from npd_ascend.errors import NpdError, UserError
from npd_ascend.interrupt import Interruption
from npd_ascend.monitors.feed import Feed
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.ops.plan import check_room
from npd_ascend.pipeline.checks import check_config, check_run_dir
from npd_ascend.pipeline.runner import Runner, Running, ShardLost
from npd_ascend.pipeline.steps import Step, StepBuilder
from npd_ascend.progress import message
from npd_ascend.recipes import Recipe, find
from npd_ascend.report.build import build as build_report
from npd_ascend.report.live import LiveView
from npd_ascend.report.warnings import rise_of_truncated
from npd_ascend.store.atomic import atomic_folder, read_sealed, sweep, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import seals_hold
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

_MAX_REGENERATIONS = 20
_POLL_S = 0.2


class Stopped(Interruption):
    """SIGTERM or SIGINT: leave in order."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Executor:
    """Runs a configuration in its run directory; to its recipe it is the ``recipes.Run``.

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
        if stage:
            check_stage(stage)
        recipe = find(self.config.run.recipe)
        check_config(self.config)
        self.placement.check(self.config, self.nodes.count)
        check_room(self.config)
        self.run_dir.lock()
        try:
            check_run_dir(self.config, self.run_dir, self.redo)
            sweep(self.run_dir.root)
            self.runner = Runner(self.config, self.run_dir, Environments.find(), self._view, self.placement, self.nodes)
            previous = {n: signal.signal(n, _stop) for n in _signals()}
            started = self.run_dir.read_state().get("started", time.time())
            self.run_dir.write_state(status="running", started=started, error="", environment=self._facts())
            status: dict[str, Any] = {"status": "stopped"}
            feeds = [
                Feed(name, self.run_dir.root, self.config.model_dump(mode="json"), fresh=self.redo)
                for name in dict.fromkeys(self.config.report.monitors)
            ]
            try:
                self.runner.start()
                for feed in feeds:
                    feed.start()
                self._mending(lambda: OneStage(self, stage).of(recipe) if stage else self._whole(recipe))
                if not stage:
                    status = {"status": "finished"}
            except (UserError, OSError) as e:
                status = {"status": "failed", "error": str(e)}
                raise
            finally:
                for n in previous:  # a second signal must not interrupt the clean-up
                    signal.signal(n, signal.SIG_IGN)
                for feed in feeds:
                    feed.stop()
                self.runner.close()
                self._conclude(status)
                for n, handler in previous.items():
                    signal.signal(n, handler)
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

    # ---- the recipe

    def _whole(self, recipe: Recipe) -> None:
        recipe(self.config, self)
        self._join_training()

    def _mending(self, work: Callable[[], None]) -> None:
        """Does the work; a damaged shard is taken back and the work begun again."""
        for _ in range(_MAX_REGENERATIONS):
            try:
                return work()
            except ShardLost as lost:
                self._drop_training()
                self._discard(lost)
        raise UserError(f"{self.run_dir.root}: shards keep being damaged ({_MAX_REGENERATIONS} times): check the disk")

    def __call__(
        self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
    ) -> None:
        row = STAGES[stage]
        if "trained" in row.reads:
            self._join_training()
        elif "snapshot" in row.reads and self._training and self._training[0].generation < generation:
            self._await_snapshot(generation - 1)
        step = self.steps.step(stage, generation, quantities=quantities, evaluation=evaluation)
        stood = step.complete
        if row.background and not stood:
            return self._start_training(step)
        self.runner.run_step(step)
        if stage == "rollout" and not stood:
            self._compare_truncated(generation)
        if stage == "evaluate":
            self._log_evaluation(step)

    def refresh(self, generation: int) -> bool:
        if self.steps.span(generation).last:
            return False
        self._await_snapshot(generation)
        # The run may be over before the lag has asked for a refresh.
        return self._training is not None or self.steps.done(generation)["reason"] != "epochs"

    def export(self, generation: int) -> None:
        self._join_training()
        self._export(generation)

    def _compare_truncated(self, generation: int) -> None:
        """Says at once, and not only in the report, when the student stops less often than a generation ago."""
        if generation == 0:
            return
        folders = [self.run_dir.generation(g).rollouts for g in (generation - 1, generation)]
        before, now = (d.extra["truncated"] / max(d.rows, 1) for d in (Dataset.open(f, "rollouts") for f in folders))
        if line := rise_of_truncated(generation, before, now):
            message(line, level="warning")

    def _log_evaluation(self, step: Step) -> None:
        assert step.done_file is not None
        result, name = read_sealed(step.done_file) or {}, step.label
        if any(r["kind"] == "evaluate" and r.get("name") == name for r in read_metrics(self.run_dir.metrics)):
            return
        self.runner.metrics.log(
            "evaluate",
            name=name,
            step=self._steps_before(step.generation),
            generation=step.generation,
            accuracy=result.get("accuracy"),
            interval=result.get("interval"),
            n=result.get("n"),
        )

    def _steps_before(self, generation: int) -> int:
        """Optimiser steps of the student that a generation begins with; with a lead, of those done so far."""
        return max(
            (
                r["step"]
                for r in read_metrics(self.run_dir.metrics)
                if r["kind"] == "train" and r.get("generation", 0) < generation and isinstance(r.get("step"), int)
            ),
            default=0,
        )

    # ---- training in the background

    def _start_training(self, step: Step) -> None:
        self._training = (step, self.runner.launch(step), time.time())

    def _await_snapshot(self, generation: int) -> None:
        """Until the next generation's snapshot exists, or training has ended (without ``lead`` both are one)."""
        if self.config.sync.lead == 0:
            return self._join_training()
        mark = self.run_dir.generation(generation).snapshot_mark
        while self._training and not self._training[1].ended:
            if (read_sealed(mark) or {}).get("fingerprint") == self._training[0].job.fingerprint:
                return
            time.sleep(_POLL_S)
        self._join_training()

    def _join_training(self) -> None:
        if self._training is None:
            return
        step, running, start = self._training
        try:
            running.wait()
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
        done = self.steps.done(generation)
        following = generation + 1
        rows = read_metrics(self.run_dir.metrics)
        if not any(r["kind"] == "refresh" and r.get("generation") == following for r in rows):
            self.runner.metrics.log(
                "refresh",
                step=done.get("step"),
                progress=done.get("progress"),
                generation=following,
                reason=done.get("reason"),
            )

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
        found = self.run_dir.find(folder)
        if found is None:
            raise UserError(str(lost))
        data, generation = found
        Dataset(folder, data.kind, "").discard(lost.index)
        if generation >= 0:
            for other in followers(data.name):
                Dataset(self.run_dir.data(other.name, generation), other.kind, "").discard(lost.index)


class OneStage:
    """Walks a recipe to the first generation in which a stage lacks something, and runs that stage alone.

    Args:
        executor: runs it.
        stage: name or group.
    """

    def __init__(self, executor: Executor, stage: str):
        self._executor, self._names, self._ran = executor, {s.name for s in named(stage)}, False

    def of(self, recipe: Recipe) -> None:
        """Does the stage, unless no generation lacks it."""
        try:
            recipe(self._executor.config, self)
        except _Walked:
            pass

    def __call__(
        self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
    ) -> None:
        if stage not in self._names:
            return
        e = self._executor
        step = e.steps.step(stage, generation, quantities=quantities, evaluation=evaluation)
        if not step.complete:
            e.runner.run_step(step)
            self._ran = True

    def refresh(self, generation: int) -> bool:
        if self._ran or not self._executor.run_dir.generation(generation).done.is_file():
            raise _Walked
        return not self._executor.steps.span(generation).last

    def export(self, generation: int) -> None:
        """Belongs to a whole run."""


class _Walked(NpdError):
    """Nothing behind this point of a recipe can be done yet, or should."""


def _signals() -> tuple[signal.Signals, ...]:
    """Signals that end a run in order; none in a thread, which Python lets have no handlers."""
    in_main = threading.current_thread() is threading.main_thread()
    return (signal.SIGTERM, signal.SIGINT) if in_main else ()


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def exit_code(e: BaseException) -> int:
    """What the command returns for an error of ``Executor.run``."""
    if isinstance(e, Stopped):
        return 128 + e.number
    return getattr(e, "exit_code", os.EX_SOFTWARE)
