"""Runs single steps: the right workers, one live view, timings, and errors as one clear line."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from npd_ascend import progress
from npd_ascend.config.schema import Config
from npd_ascend.environments import Environments
from npd_ascend.errors import CorruptShard, NpdError, UserError
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline import launch
from npd_ascend.pipeline.cluster import Cluster, hire
from npd_ascend.pipeline.launch import Crew, Here
from npd_ascend.pipeline.steps import Step
from npd_ascend.report.live import LiveView
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter
from npd_ascend.workers.jobfile import write_job
from npd_ascend.workers.session import Session, Work


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
    """Takes in all events of a run: feeds the view, keeps the last word of each stage, writes them to a file.

    Args:
        record: the file, begun afresh.
        view: where progress is shown.
    """

    def __init__(self, record: Path, view: LiveView):
        self._record, self._view = record, view
        self._last: dict[str, dict[str, Any]] = {}
        self._spent: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        record.write_text("")

    def start(self) -> None:
        self._before = progress.send_to(self.take)
        self._view.start()

    def stop(self) -> None:
        """Ends the view."""
        progress.send_to(self._before)
        self._view.stop()

    def take(self, event: dict[str, Any]) -> None:
        """Takes in an event; any thread may call."""
        with self._lock:
            if event["event"] in ("begin", "progress", "end"):
                self._last[event["stage"]] = event
            elif event["event"] == "spent":
                self._spent.append(event)
            try:
                with open(self._record, "a", encoding="utf-8") as f:
                    f.write(json.dumps(event) + "\n")
            except OSError:
                pass  # a full disk: the stage's own writes find it out and say it
            self._view.handle(event)

    def reset(self, stage: str) -> None:
        """Forgets what stages of this name said before."""
        with self._lock:
            self._last = {k: v for k, v in self._last.items() if not k.startswith(stage)}
            self._spent = [e for e in self._spent if not e["stage"].startswith(stage)]

    def totals(self, stage: str) -> tuple[int, int, float]:
        """(samples done, tokens, busy seconds) since ``reset``."""
        with self._lock:
            events = [v for k, v in self._last.items() if k.startswith(stage)]
        return (
            sum(e["done"] - e["skipped"] for e in events),
            sum(e["tokens"] for e in events),
            max((e["seconds"] for e in events), default=0.0),
        )

    def spent(self, stage: str) -> dict[str, float]:
        """Seconds beside the work on data since ``reset``: ``start`` (imports, engines), ``load`` (weights) and
        ``compile``, of the worker that took longest."""
        totals: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        with self._lock:
            for event in (e for e in self._spent if e["stage"].startswith(stage)):
                totals[event["what"]][event.get("worker", 0)] += event["seconds"]
        return {what: round(max(of.values()), 3) for what, of in totals.items()}


class Running:
    """A step that is at work in the background."""

    def __init__(self, future: Future[None], session: Session):
        self._future, self._session = future, session

    @property
    def ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    def wait(self) -> None:
        """Waits for its end; raises what ``Runner.run_step`` does."""
        self._future.result()

    def stop(self) -> None:
        """Ends its workers."""
        self._session.close()


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
        self.config, self.run, self.placement, self.nodes = config, run, placement, nodes or Nodes()
        run.logs.mkdir(parents=True, exist_ok=True)
        self.here = Here(config, placement, self.nodes, environments, run.logs)
        self.monitor = Monitor(run.logs / "progress.jsonl", view)
        self.metrics = MetricsWriter(run.metrics)
        self._sessions: dict[Crew, tuple[Session, bool]] = {}
        self._cluster = Cluster(config, self.nodes, run.logs) if self.nodes.count > 1 else None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="training")

    # ---- life

    def start(self) -> None:
        """Starts the view, and waits for the other nodes.

        Raises:
            UserError: a node does not come.
        """
        self.monitor.start()
        if self._cluster:
            self._cluster.start()

    def close(self) -> None:
        """Ends every worker that is still there, then the view."""
        for crew in list(self._sessions):
            self._leave(crew)
        self._background.shutdown()
        if self._cluster:
            self._cluster.close()
        self.monitor.stop()

    # ---- steps

    def run_step(self, step: Step) -> None:
        """Runs a step to its end in the foreground; does nothing when it is complete already.

        Raises:
            UserError: it failed; the message says why and where its log is.
            ShardLost: it met a damaged shard.
        """
        if step.complete:
            return
        self.monitor.reset(step.stage.reports)
        start = time.monotonic()
        try:
            self._do(step, self._session(step))
        finally:  # time that a failed try took is time all the same
            self.book(step, time.monotonic() - start)

    def launch(self, step: Step) -> Running:
        """Starts a step and returns at once."""
        self.monitor.reset(step.stage.reports)
        session = self._session(step)
        return Running(self._background.submit(self._do, step, session), session)

    def book(self, step: Step, seconds: float, ended: float | None = None) -> None:
        """Writes the ``stage`` row of metrics.jsonl: wall seconds (start-up included), busy seconds, units, tokens,
        and what starting, loading and compiling took.

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

    def _do(self, step: Step, session: Session) -> None:
        write_job(self.run.jobs / f"{step.name}.json", step.stage.name, step.job)
        crew = launch.crew_of(step.stage, step.job, self.nodes)
        settings = launch.settings_of(step.job)
        shares = step.job.shares() if hasattr(step.job, "shares") else None
        try:
            session.do(Work(step.stage.module, step.job, crew.section, settings, shares))
        except CorruptShard as e:
            raise ShardLost(e.dataset, e.index, str(e)) from None
        except UserError as e:
            raise UserError(f"{step.name}: {e}") from None
        if settings.keep_alive is False:
            session.leave()
        if not step.complete:
            raise UserError(f"{step.name} ended without finishing its output; its logs are in {self.run.logs}")

    def _session(self, step: Step) -> Session:
        """The workers for a step, alone on its devices unless they are to share them."""
        crew = launch.crew_of(step.stage, step.job, self.nodes)
        for other, (_, stays) in list(self._sessions.items()):
            if other != crew and not stays and self.placement.collide(crew.side, other.side):
                self._leave(other)
        if crew not in self._sessions or self._sessions[crew][0].closed:
            session = Session(crew.name.replace("_", " "), partial(hire, self._cluster, self.here, crew), crew.workers)
            self._sessions[crew] = session, launch.settings_of(step.job).keep_alive is True
        return self._sessions[crew][0]

    def _leave(self, crew: Crew) -> None:
        self._sessions.pop(crew)[0].close()
