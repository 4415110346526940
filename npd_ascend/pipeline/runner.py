"""Runs single steps: the right process, one live view, timings, and errors as one clear line."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npd_ascend.config.jobs import AnnotateJob, RolloutJob, TrainJob
from npd_ascend.config.schema import Config
from npd_ascend.errors import EXIT_CORRUPT, EXIT_USER, CorruptShard, UserError
from npd_ascend.ops.environments import Environments, visible_npus
from npd_ascend.pipeline import child as child_module
from npd_ascend.pipeline.child import write_job
from npd_ascend.pipeline.processes import Child, child_environment, free_port
from npd_ascend.pipeline.steps import Step
from npd_ascend.progress import ENV as PROGRESS_ENV
from npd_ascend.report.live import LiveView, ProgressTail
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter

_FULL = 1 << 16


_POLL_S = 0.1


class ShardLost(Exception):
    """A stage met a damaged shard; it must be made again.

    Attributes:
        dataset: its folder.
        index: its number.
    """

    def __init__(self, dataset: str, index: int):
        super().__init__(f"{dataset}: shard {index}")
        self.dataset, self.index = Path(dataset), index


class Monitor:
    """Follows the progress file in a thread: feeds the view, keeps the last word of each stage."""

    def __init__(self, path: Path, view: LiveView):
        self._tail, self._view = ProgressTail(path), view
        self._last: dict[str, dict[str, Any]] = {}
        self._faults: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def start(self) -> None:
        self._view.start()
        self._thread.start()

    def stop(self) -> None:
        """Shows what is left and ends the view."""
        self._stop.set()
        self._thread.join()
        self._view.stop()

    def drain(self) -> None:
        """Takes in everything written so far."""
        with self._lock:
            for event in self._tail.poll():
                if event["event"] in ("begin", "progress", "end"):
                    self._last[event["stage"]] = event
                elif event["event"] in ("error", "corrupt"):
                    self._faults.append(event)
                if event["event"] != "error":  # errors are told once, at the end of the command
                    self._view.handle(event)

    def reset(self, stage: str) -> None:
        """Forgets what stages of this name said before."""
        self.drain()
        with self._lock:
            self._last = {k: v for k, v in self._last.items() if not k.startswith(stage)}
            self._faults.clear()

    def totals(self, stage: str) -> tuple[int, int, float]:
        """(samples done, tokens, busy seconds) since ``reset``."""
        self.drain()
        with self._lock:
            events = [v for k, v in self._last.items() if k.startswith(stage)]
        return (
            sum(e["done"] - e["skipped"] for e in events),
            sum(e["tokens"] for e in events),
            max((e["seconds"] for e in events), default=0.0),
        )

    def fault(self, kind: str) -> dict[str, Any] | None:
        """The newest event of this kind, if any."""
        self.drain()
        with self._lock:
            return next((f for f in reversed(self._faults) if f["event"] == kind), None)

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.drain()
        self.drain()


def _share_of_machine(job: AnnotateJob) -> dict[str, str]:
    """Environment that keeps workers apart: a device each, or their part of the cores."""
    n = job.settings.workers
    if job.device.target == "cpu":
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // n))}
    npus = visible_npus()
    if n > len(npus):
        raise UserError(f"annotate.workers is {n} but {len(npus)} NPUs are visible")
    return {"ASCEND_RT_VISIBLE_DEVICES": str(npus[job.worker])}


class Runner:
    """Runs the steps of one run.

    Args:
        config: configuration of the run.
        run: its directory.
        environments: interpreters.
        view: where progress is shown.
    """

    def __init__(self, config: Config, run: RunDir, environments: Environments, view: LiveView):
        self.config, self.run, self.environments = config, run, environments
        run.logs.mkdir(parents=True, exist_ok=True)
        self.progress = run.logs / "progress.jsonl"
        self.progress.unlink(missing_ok=True)
        self.monitor = Monitor(self.progress, view)
        self.metrics = MetricsWriter(run.metrics)
        self._pool: RolloutPool | None = None
        self._children: list[Child] = []

    # ---- life

    def start(self) -> None:
        """Starts the view. The rollout pool meters its work in this process, so it reports here as well."""
        os.environ[PROGRESS_ENV] = str(self.progress.resolve())
        self.monitor.start()

    def close(self) -> None:
        """Ends every process that is still there, then the view."""
        os.environ.pop(PROGRESS_ENV, None)
        for child in self._children:
            child.stop()
        self.close_pool()
        self.monitor.stop()

    def close_pool(self) -> None:
        """Ends the rollout engines; the next rollout starts them anew."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    # ---- steps

    def run_step(self, step: Step, stage: str | None = None) -> None:
        """Runs a step to its end in the foreground; does nothing when it is complete already.

        Args:
            step: what to run.
            stage: name under which its time is booked, when not the step's own.
        """
        if step.complete:
            return
        if isinstance(step.job, RolloutJob) and step.job.settings.source != "reference":
            self._timed(step, lambda: self._run_on_pool(step), stage)
        else:
            self._timed(step, lambda: self._run_children(step), stage)

    def launch(self, step: Step) -> Child:
        """Starts a step's process and returns at once."""
        job = step.job
        path = self.run.jobs / f"{step.name}.json"
        write_job(path, step.room, job)
        python = self.environments.mindspore
        command = [str(python), child_module.__file__, str(path)]
        if isinstance(job, TrainJob) and job.settings.data_parallel > 1:
            n = str(job.settings.data_parallel)
            command = [
                str(python.parent / "msrun"),
                f"--worker_num={n}",
                f"--local_worker_num={n}",
                "--join=True",
                f"--master_port={free_port()}",
                f"--log_dir={self.run.logs / (step.name + '-ranks')}",
                *command[1:],
            ]
        env = child_environment(python, self.progress)
        if isinstance(job, AnnotateJob) and job.settings.workers > 1:
            env |= _share_of_machine(job)
        child = Child(step.name, command, env, self.run.logs / f"{step.name}.log")
        self._children.append(child)
        return child

    def finish(self, step: Step, child: Child) -> None:
        """Waits for a launched step.

        Raises:
            UserError: it failed; the message says why and where its log is.
            ShardLost: it met a damaged shard.
        """
        code = child.wait()
        self._children.remove(child)
        if code == 0 and step.complete:
            return
        corrupt = self.monitor.fault("corrupt")
        if corrupt and code != 0:
            raise ShardLost(corrupt["dataset"], corrupt["index"])
        error = self.monitor.fault("error")
        if error and code != 0:
            raise UserError(f"{step.name}: {error['text']}")
        if code != 0 and shutil.disk_usage(self.run.root).free < _FULL:  # then no file could say what happened
            raise UserError(f"{step.name}: the disk of {self.run.root} is full; free some space and run the same "
                            "command again, nothing is lost")  # fmt: skip
        if code in (EXIT_USER, EXIT_CORRUPT):
            raise UserError(f"{step.name}: {child.last_words()}")
        how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        if code == -9:
            how += " (out of memory? lower the stage's micro_batch or row_length)"
        if code == 0:
            how = "ended without finishing its output"
        last = child.last_words()
        raise UserError(f"{step.name} {how}; its log is {child.log}" + (f", last line: {last}" if last else ""))

    def book(self, step: Step, seconds: float, stage: str | None = None) -> None:
        """Writes the ``stage`` row of metrics.jsonl: wall seconds (start-up included), busy seconds, units, tokens."""
        samples, tokens, busy = self.monitor.totals(step.stage.split("_")[0])
        self.metrics.log(
            "stage",
            stage=stage or step.stage,
            generation=step.generation,
            seconds=round(seconds, 3),
            busy=round(busy, 3),
            samples=samples,
            tokens=tokens,
        )
        self.run.write_state(last_step=step.name)

    def _run_children(self, step: Step) -> None:
        """Runs a step's processes side by side; when one fails the others are stopped."""
        shares = step.shares()
        children = [self.launch(share) for share in shares]
        try:
            while any(c.poll() is None for c in children) and not any(c.poll() for c in children):
                time.sleep(_POLL_S)
            failed_first = sorted(zip(shares, children, strict=True), key=lambda pair: not pair[1].poll())
            for share, child in failed_first:
                self.finish(share, child)
        finally:
            for child in children:
                child.stop()
            self._children = [c for c in self._children if c not in children]

    def _timed(self, step: Step, work: Callable[[], None], stage: str | None) -> None:
        self.monitor.reset(step.stage.split("_")[0])
        start = time.monotonic()
        try:
            work()
        finally:  # time that a failed try took is time all the same
            self.book(step, time.monotonic() - start, stage)

    def _run_on_pool(self, step: Step) -> None:
        assert isinstance(step.job, RolloutJob)
        if self._pool is None:
            settings = self.config.rollout
            self._pool = RolloutPool(
                self.environments.rollout,
                settings.workers,
                self.run.logs,
                target=step.job.device.target,
                tensor_parallel=settings.tensor_parallel,
                env=child_environment(self.environments.rollout, self.progress),
            )
        try:
            self._pool.run(step.job)
        except CorruptShard as e:
            raise ShardLost(e.dataset, e.index) from None
        if not step.job.settings.keep_alive:
            self.close_pool()
        if not step.complete:
            raise UserError(f"{step.name} ended without finishing its output; its logs are in {self.run.logs}")
