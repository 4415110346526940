"""Runs single steps: the right process, one live view, timings, and errors as one clear line."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npd_ascend import out_of_memory
from npd_ascend.config.job import Job
from npd_ascend.config.schema import Config
from npd_ascend.errors import EXIT_CORRUPT, EXIT_USER, CorruptShard, NpdError, UserError
from npd_ascend.ops.environments import Environments
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline import launch
from npd_ascend.pipeline.child import write_job
from npd_ascend.pipeline.node_protocol import Followers, ProcessSet, Running
from npd_ascend.pipeline.processes import Child, child_environment
from npd_ascend.pipeline.steps import Step
from npd_ascend.progress import ENV as PROGRESS_ENV
from npd_ascend.progress import STARTED as STARTED_ENV
from npd_ascend.progress import ProgressTail
from npd_ascend.report.live import LiveView
from npd_ascend.rollout.cluster import RayNode
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter

_FULL = 1 << 16
_POLL_S = 0.1


class ShardLost(NpdError):
    """A stage met a damaged shard, or a damaged snapshot; it must be made again.

    Attributes:
        dataset: its folder.
        index: its number; -1 for a snapshot.
    """

    def __init__(self, dataset: str, index: int, text: str):
        super().__init__(text)
        self.dataset, self.index = Path(dataset), index


class Monitor:
    """Follows the progress files in a thread: feeds the view, keeps the last word of each stage."""

    def __init__(self, paths: list[Path], view: LiveView):
        self._tails, self._view = [ProgressTail(path) for path in paths], view
        self._last: dict[str, dict[str, Any]] = {}
        self._spent: list[dict[str, Any]] = []
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
            for event in (event for tail in self._tails for event in tail.poll()):
                if event["event"] in ("begin", "progress", "end"):
                    self._last[event["stage"]] = event
                elif event["event"] == "spent":
                    self._spent.append(event)
                elif event["event"] in ("error", "corrupt"):
                    self._faults.append(event)
                if event["event"] != "error":  # errors are shown once, at the end of the command
                    self._view.handle(event)

    def reset(self, stage: str) -> None:
        """Forgets what stages of this name said before."""
        self.drain()
        with self._lock:
            self._last = {k: v for k, v in self._last.items() if not k.startswith(stage)}
            self._spent = [e for e in self._spent if not e["stage"].startswith(stage)]
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

    def spent(self, stage: str) -> dict[str, float]:
        """Seconds before the work on data since ``reset``: ``start`` (imports) and ``compile``, of the slowest one."""
        self.drain()
        with self._lock:
            events = [e for e in self._spent if e["stage"].startswith(stage)]
        return {what: max(e["seconds"] for e in events if e["what"] == what) for what in {e["what"] for e in events}}

    def fault(self, kind: str) -> dict[str, Any] | None:
        """The newest event of this kind, if any."""
        self.drain()
        with self._lock:
            return next((f for f in reversed(self._faults) if f["event"] == kind), None)

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.drain()
        self.drain()


class Runner:
    """Runs the steps of one run.

    Args:
        config: configuration of the run.
        run: its directory.
        environments: interpreters.
        view: where progress is shown.
        placement: devices of the stages on this node.
        nodes: how many nodes there are; this is node 0.
    """

    def __init__(
        self,
        config: Config,
        run: RunDir,
        environments: Environments,
        view: LiveView,
        placement: Placement,
        nodes: Nodes | None = None,
    ):
        self.config, self.run, self.environments = config, run, environments
        self.placement, self.nodes = placement, nodes or Nodes()
        run.logs.mkdir(parents=True, exist_ok=True)
        files = [launch.progress_file(run.logs, rank) for rank in range(self.nodes.count)]
        for file in files:
            file.unlink(missing_ok=True)
        self.progress = files[0]
        self.monitor = Monitor(files, view)
        self.metrics = MetricsWriter(run.metrics)
        self._followers = Followers(run.nodes, self.nodes) if self.nodes.count > 1 else None
        self._pool: RolloutPool | None = None
        self._ray: RayNode | None = None
        self._children: list[Running] = []

    # ---- life

    def start(self) -> None:
        """Starts the view, and waits for the other nodes.

        The rollout pool meters its work in this process, so it reports here as well.

        Raises:
            UserError: a node does not come.
        """
        os.environ[PROGRESS_ENV] = str(self.progress.resolve())
        self.monitor.start()
        if self._followers:
            self._ray = launch.ray_node(
                self.config, self.placement, self.nodes, self.environments.rollout, self.run.logs
            )
            self._followers.start()

    def close(self, error: str = "") -> None:
        """Ends every process that is still there, then the view; ``error``: the reason that other nodes get."""
        os.environ.pop(PROGRESS_ENV, None)
        for child in self._children:
            child.stop()
        if self._followers:
            self._followers.stop(error)
        self.close_pool()
        if self._ray:
            self._ray.close()
        self.monitor.stop()

    def close_pool(self) -> None:
        """Ends the rollout engines; the next rollout restarts them."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    # ---- steps

    def run_step(self, step: Step) -> None:
        """Runs a step to its end in the foreground; does nothing when it is complete already."""
        if step.complete:
            return
        if isinstance(step.job, RolloutJob) and step.job.settings.source != "reference":
            self._timed(step, lambda: self._run_on_pool(step))
        else:
            self._timed(step, lambda: self._run_children(step))

    def launch(self, step: Step) -> Running:
        """Starts a step's process, or its processes on several nodes, and returns at once."""
        self._make_room(step.job)
        path = self.run.jobs / f"{step.name}.json"
        write_job(path, step.stage.name, step.job)
        parts = [self._launch_on(step, path, node) for node in launch.nodes_of(step.job, self.nodes)]
        child = parts[0] if len(parts) == 1 else ProcessSet(step.name, parts)
        self._children.append(child)
        return child

    def _launch_on(self, step: Step, path: Path, node: int) -> Running:
        log = self.run.logs / f"{step.name}{f'-node{node}' if node else ''}.log"
        if node:
            assert self._followers is not None
            return self._followers.launch(step.name, node, log)
        python = self.environments.mindspore
        command = launch.command(python, path, step.job, self.nodes, self.run.logs / f"{step.name}-ranks")
        env = child_environment(python, self.progress, **{STARTED_ENV: repr(time.time())})
        env |= launch.environment(step.job, self.placement, self.nodes)
        return Child(step.name, command, env, log, launch.cores(step.job, self.placement))

    def _make_room(self, job: Job) -> None:
        """Engines leave the devices, and their memory, that a job needs."""
        if launch.collides(job, self.placement):
            self.close_pool()

    def finish(self, step: Step, child: Running) -> None:
        """Waits for a launched step.

        Raises:
            UserError: it failed; the message says why and where its log is.
            ShardLost: it met a damaged shard.
        """
        code = child.wait()
        self._children.remove(child)
        if self._followers:
            self._followers.close_order(step.name)
        if code == 0 and step.complete:
            return
        corrupt = self.monitor.fault("corrupt")
        if corrupt and code != 0:
            raise ShardLost(corrupt["dataset"], corrupt["index"], corrupt["text"])
        error = self.monitor.fault("error")
        if error and code != 0:
            raise UserError(f"{step.name}: {error['text']}")
        if code != 0 and shutil.disk_usage(self.run.root).free < _FULL:  # then no file could say what happened
            raise UserError(f"{step.name}: the disk of {self.run.root} is full; free some space and run the same "
                            "command again, nothing is lost")  # fmt: skip
        if code in (EXIT_USER, EXIT_CORRUPT):
            raise UserError(f"{step.name}: {child.log_tail()}")
        if code != 0 and child.ran_out_of_memory():
            raise UserError(f"{step.name}: out of memory; {step.stage.memory}; its log is {child.log}")
        if code != 0 and (cause := out_of_memory.no_thread(child.log_tail(20))):
            raise UserError(f"{step.name}: {cause}; its log is {child.log}")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        if code == -signal.SIGKILL:
            how += f" (if nobody did that, memory ran out: {step.stage.memory})"
        if code == 0:
            how = "ended without finishing its output"
        last = child.log_tail()
        raise UserError(f"{step.name} {how}; its log is {child.log}" + (f", last line: {last}" if last else ""))

    def book(self, step: Step, seconds: float, ended: float | None = None) -> None:
        """Writes the ``stage`` row of metrics.jsonl: wall seconds (start-up included), busy seconds, units, tokens;
        for MindSpore's stages also what importing (``start``) and compiling (``compile``) took.

        Args:
            step: what has run.
            seconds: how long.
            ended: when it ended, if not now.
        """
        samples, tokens, busy = self.monitor.totals(step.stage.reports)
        spent = self.monitor.spent(step.stage.reports)
        self.metrics.log(
            "stage",
            stage=step.stage.heading,
            generation=step.generation,
            seconds=round(seconds, 3),
            busy=round(busy, 3),
            samples=samples,
            tokens=tokens,
            **spent,
            **({} if ended is None else {"time": round(ended, 3)}),
        )
        self.run.write_state(last_step=step.name)

    def _run_children(self, step: Step) -> None:
        """Runs a step's processes side by side; when one fails the others are stopped."""
        parts = step.processes()
        children = [self.launch(part) for part in parts]
        try:
            while any(c.poll() is None for c in children) and not any(c.poll() for c in children):
                time.sleep(_POLL_S)
            failed_first = sorted(zip(parts, children, strict=True), key=lambda pair: not pair[1].poll())
            for part, child in failed_first:
                self.finish(part, child)
        finally:
            for child in children:
                child.stop()
            self._children = [c for c in self._children if c not in children]

    def _timed(self, step: Step, work: Callable[[], None]) -> None:
        self.monitor.reset(step.stage.reports)
        start = time.monotonic()
        try:
            work()
        finally:  # time that a failed try took is time all the same
            self.book(step, time.monotonic() - start)

    def _run_on_pool(self, step: Step) -> None:
        assert isinstance(step.job, RolloutJob)
        if self._pool is None:
            settings, python = self.config.rollout, self.environments.rollout
            env = child_environment(python, self.progress) | self.placement.environment("rollout")
            self._pool = RolloutPool(
                python,
                settings.workers,
                self.run.logs,
                target=step.job.device.target,
                tensor_parallel=settings.tensor_parallel,
                env=env,
                cores=self.placement.cores("rollout"),
                cluster=launch.ray_cluster(self.config, self.placement, self.nodes, python, self.run.logs, env),
            )
        try:
            self._pool.run(step.job)
        except CorruptShard as e:
            raise ShardLost(e.dataset, e.index, str(e)) from None
        if not step.job.settings.keep_alive:
            self.close_pool()
        if not step.complete:
            raise UserError(f"{step.name} ended without finishing its output; its logs are in {self.run.logs}")
