"""Rollout workers as seen from the executor: started, watched, restarted, stopped. No engine is imported here.

Workers talk over their pipes (``worker.py`` has the protocol). Each leads a process group of its own, so its
engine's processes die with it, and ends by itself when this process dies, because its stdin then ends.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from npd_ascend import out_of_memory
from npd_ascend.arrays import Array
from npd_ascend.errors import CorruptShard, CorruptSnapshot, NpdError, UserError
from npd_ascend.progress import Meter, message
from npd_ascend.rollout import live
from npd_ascend.rollout.check import Verdict
from npd_ascend.rollout.cluster import Cluster
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.live import LiveBatch
from npd_ascend.rollout.local import LocalWorker, Worker
from npd_ascend.rollout.questions import Asking, Question, Reply
from npd_ascend.rollout.shards import Board
from npd_ascend.rollout.stage import Tally
from npd_ascend.store.dataset import Dataset

_TICK_S = 0.2
_EXIT_S = 5.0
_START_S = 900.0


class PoolClosed(NpdError):
    """``close`` was called while a job was running (from another thread, or a signal handler)."""


class Work(Protocol):
    """What the workers of a pool do together; ``Asking`` is another one."""

    @property
    def open(self) -> bool:
        """Whether something is left that no worker has."""
        ...

    def command(self, index: int) -> dict[str, Any] | None:
        """What a worker is to do that has nothing to do; None: nothing is left for it."""
        ...

    def hear(self, index: int, event: dict[str, Any]) -> bool:
        """Takes what a worker tells of its work; returns whether it is still at it."""
        ...

    def more(self, index: int) -> dict[str, Any] | None:
        """What a worker is to do as well, or None."""
        ...

    def lose(self, index: int) -> None:
        """A worker is gone."""
        ...


class _Shards:
    """The shards of a job. Workers claim them by themselves, and a dead one's claims are free."""

    def __init__(self, job: RolloutJob, tally: Tally):
        self._job, self._tally = job, tally
        self._command = {"cmd": "run", "job": job.model_dump(mode="json")}
        self._shards = Dataset.open(job.prompts, "prompts").shards

    @property
    def open(self) -> bool:
        return bool(Dataset(self._job.out, "rollouts", self._job.fingerprint).missing(self._shards))

    def command(self, index: int) -> dict[str, Any] | None:
        return self._command

    def hear(self, index: int, event: dict[str, Any]) -> bool:
        if event["event"] == "progress":
            self._tally(event["samples"], event["tokens"], {int(i): n for i, n in event["have"].items()})
        return bool(event["event"] != "done")

    def more(self, index: int) -> dict[str, Any] | None:
        return None

    def lose(self, index: int) -> None:
        pass


class RolloutPool:
    """Long-lived workers that share the shards of one job at a time.

    Engines stay up between jobs; a job with another model of the same shape reloads weights in place, one of
    another shape gets new processes.

    Args:
        python: interpreter of the rollout environment.
        workers: how many; on Ascend one for each device or tensor-parallel group.
        logs: folder for ``rollout-<i>.log``, what each worker prints.
        target: ``cpu`` or ``ascend``.
        tensor_parallel: devices a worker (Ascend).
        env: added to the environment of the workers.
        cores: CPU cores that the workers are tied to; None: all.
        cluster: where the workers run instead of this node; closed with the pool.
        meter: makes the progress meter of a job.
    """

    def __init__(
        self,
        python: Path,
        workers: int,
        logs: Path,
        *,
        target: str = "cpu",
        tensor_parallel: int = 1,
        env: Mapping[str, str] | None = None,
        cores: Sequence[int] | None = None,
        cluster: Cluster | None = None,
        meter: Callable[..., Meter] = Meter,
    ):
        self.python, self.logs, self._meter = Path(python), Path(logs), meter
        self._size = workers
        self._env = {**os.environ, **(env or {})}
        self._target, self._tp, self._cores = target, tensor_parallel, cores
        self._cluster = cluster
        self._events: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        self._workers: dict[int, Worker] = {}
        self._closed = False

    def start(self) -> None:
        """Starts the workers that are not up, so that the interpreters load while other work goes on."""
        for i in range(self._size):
            self._worker(i)

    def run(self, job: RolloutJob) -> None:
        """Makes the rollouts of a job; returns at once when they are complete.

        A worker that dies, or shows no step of its engine for ``settings.hang_seconds`` (a quarter of an hour at least
        before its first), is replaced; what it had finished is in the journals and the rest is generated again.

        Raises:
            UserError: of the job itself, or more than ``settings.max_failures`` workers died.
            CorruptShard: a prompts shard is damaged.
            PoolClosed: see there.
        """
        with Board(job) as board:
            if not board.open:
                board.finish()
                return
            wanted = min(self._size, len(board.dataset.missing(board.shards)))
        try:
            tally = Tally(job, self._meter)
            self._run(job, wanted, _Shards(job, tally))
            tally.close(complete=True)
        except BaseException:
            self._kill()
            raise
        with Board(job) as board:
            if not board.finish():
                raise UserError(f"{job.out}: the workers ended with shards still missing; run the same command again")

    def answer(self, job: RolloutJob, prompts: Sequence[Array], seeds: Sequence[int | None]) -> LiveBatch:
        """Answers one batch of prompts in memory, on the first worker; nothing is stored.

        Args:
            job: model, settings and lengths; its datasets are not looked at.
            prompts: token ids of each prompt.
            seeds: of each answer; None: greedy.

        Raises:
            UserError: the worker failed or hangs, or a prompt does not fit.
            PoolClosed: see there.
        """
        command = live.ask(job, prompts, seeds)
        load, started = 0.0, False
        try:
            self._assign(0, command)
            while True:
                self._kill_hanging(job.settings.hang_seconds)
                try:
                    worker, event = self._events.get(timeout=_TICK_S)
                except queue.Empty:
                    continue
                if self._workers.get(worker.index) is not worker:
                    continue
                worker.heard = time.monotonic()
                if event["event"] == "loaded":
                    load, started = load + event["seconds"], started or event["how"] == "start"
                    self._tell_load(worker, event, only_failures=True)
                elif event["event"] == "answers":
                    worker.busy, worker.settled = False, True
                    return live.read(event, load, started)
                elif event["event"] == "restart":
                    self._assign(0, command, restart=True)
                elif event["event"] == "error":
                    raise UserError(event["text"])
                elif event["event"] == "died":
                    raise UserError(f"rollout worker failed ({_cause(worker)}); see {worker.log}")
        except BaseException:
            self._kill()
            raise

    def ask(
        self,
        job: RolloutJob,
        tokenizer: Path,
        questions: Sequence[Question],
        take: Callable[[int, Reply], None],
        trust_remote_code: bool = False,
    ) -> None:
        """Has questions answered in memory by all workers; nothing is stored.

        Args:
            job: model, settings and length; its datasets are not looked at.
            tokenizer: folder of the tokenizer that reads stop texts.
            questions: all of them.
            take: called here with the number of a question and its reply, as they come.
            trust_remote_code: of the tokenizer.

        Raises:
            UserError: of the questions themselves, or more than ``settings.max_failures`` workers died.
            PoolClosed: see there.
        """
        try:
            work = Asking(job, tokenizer, trust_remote_code, questions, take, self._size)
            self._run(job, min(self._size, len(questions)), work)
        except BaseException:
            self._kill()
            raise

    def close(self) -> None:
        """Stops all workers, those at work too; may be called twice and from any thread."""
        self._closed = True
        for worker in list(self._workers.values()):
            worker.send({"cmd": "exit"})
        deadline = time.monotonic() + _EXIT_S
        for worker in list(self._workers.values()):
            if not worker.busy:
                worker.wait(max(0.0, deadline - time.monotonic()))
        self._kill()
        if self._cluster is not None:
            self._cluster.close()

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- inside

    def _run(self, job: RolloutJob, wanted: int, work: Work) -> None:
        self._orphans = False
        for i in range(wanted):
            self._give(i, work)
        failures = 0
        while self._busy(work):
            failures = self._take_event(job, work, failures)
        if self._closed:
            raise PoolClosed("the rollout pool was closed")

    def _busy(self, work: Work) -> bool:
        """Whether anything is to be waited for. What a worker left which had no successor goes to the others."""
        workers = list(self._workers.values())
        if any(w.busy for w in workers):
            return True
        if self._orphans and workers and work.open:
            self._orphans = False
            for worker in workers:
                self._give(worker.index, work)
            return True
        return False

    def _give(self, index: int, work: Work, restart: bool = False) -> None:
        """Sets a worker to work, if anything is left for it."""
        if command := work.command(index):
            self._assign(index, command, restart)

    def _take_event(self, job: RolloutJob, work: Work, failures: int) -> int:
        """Waits a moment for one event and acts on it; returns the failures so far."""
        self._kill_hanging(job.settings.hang_seconds)
        try:
            worker, event = self._events.get(timeout=_TICK_S)
        except queue.Empty:
            return failures
        if self._workers.get(worker.index) is not worker:
            return failures  # the last words of a process that was replaced
        worker.heard = time.monotonic()
        kind = event["event"]
        if kind in ("progress", "done", "replies"):
            worker.settled = True
            worker.busy = work.hear(worker.index, event)
            if more := work.more(worker.index):
                worker.busy = True
                worker.send(more)
        elif kind == "loaded":
            self._tell_load(worker, event)
        elif kind == "placed":
            message(f"rollout worker {worker.index} is on {event['node']}")
        elif kind == "restart":
            work.lose(worker.index)
            self._give(worker.index, work, restart=True)
        elif kind == "error" and event["kind"] == "corrupt" and event["index"] < 0:
            raise CorruptSnapshot(event["dataset"], "found damaged by a rollout worker")
        elif kind == "error" and event["kind"] == "corrupt":
            raise CorruptShard(event["dataset"], event["index"], "found by a rollout worker")
        elif kind == "error" and event["kind"] == "user":
            raise UserError(event["text"])
        elif kind == "error":
            worker.why = event["text"]  # its death follows, and is counted then
        elif kind == "unplaced":
            del self._workers[worker.index]
            work.lose(worker.index)
            self._orphans = True
            if not self._workers:
                raise UserError(f"{event['text']}; nowhere to run rollouts")
            message(f"rollout worker {worker.index}: {event['text']}; the others go on", level="warning")
        elif kind == "died" and not worker.busy:
            del self._workers[worker.index]
        elif kind == "died":
            failures += 1
            why = _cause(worker)
            if failures > job.settings.max_failures:
                raise UserError(
                    f"rollout worker {worker.index} failed ({why}), failure {failures} of this job "
                    f"and rollout.max_failures is {job.settings.max_failures}; see {worker.log}"
                )
            message(f"rollout worker {worker.index} failed ({why}); starting another", level="warning")
            work.lose(worker.index)
            self._give(worker.index, work, restart=True)
        return failures

    def _tell_load(self, worker: Worker, event: dict[str, Any], only_failures: bool = False) -> None:
        """Says that an engine has new weights, and what the check of its answers found."""
        check = Verdict(**event["check"]) if event["check"] else None
        text = {"start": "engine started", "reload": "weights reloaded"}[event["how"]]
        text = f"rollout worker {worker.index}: {text} in {event['seconds']:.1f} s" + (f", {check}" if check else "")
        if check is None or check.passed:
            if not only_failures:
                message(text)
        elif event["how"] == "reload":
            worker.settled = False  # a start follows
            message(
                f"{text}: it does not answer with the new weights and is started afresh; where captured graphs are "
                "the cause, rollout.enforce_eager: true avoids that",
                level="warning",
            )
        else:
            message(f"{text}: more than rounding explains; npd doctor --selftest compares further", level="warning")

    def _kill_hanging(self, hang_seconds: float) -> None:
        for worker in list(self._workers.values()):
            # Loading, compiling and the first steps of an engine take their time and give no sign.
            limit = hang_seconds if worker.settled else max(hang_seconds, _START_S)
            if worker.busy and not worker.why and time.monotonic() - worker.heard > limit:
                worker.why = f"showed no progress for {limit:g} s (rollout.hang_seconds)"
                worker.kill()  # its death is the next event

    def _assign(self, index: int, command: dict[str, Any], restart: bool = False) -> None:
        if restart and index in self._workers:
            self._workers.pop(index).kill()
        worker = self._worker(index)
        worker.busy, worker.heard = True, time.monotonic()
        worker.send(command)

    def _worker(self, index: int) -> Worker:
        if self._closed:
            raise PoolClosed("the rollout pool was closed")
        old = self._workers.get(index)
        if old is None or not old.alive:
            if old is not None:
                old.kill()
            self.logs.mkdir(parents=True, exist_ok=True)
            log = self.logs / f"rollout-{index}.log"
            if self._cluster is not None:
                self._workers[index] = self._cluster.hire(index, log, self._events)
            else:
                self._workers[index] = LocalWorker(
                    index, self.python, log, self._environment(index), self._cores, self._events
                )
        return self._workers[index]

    def _environment(self, index: int) -> dict[str, str]:
        env = {**self._env, "PYTHONUNBUFFERED": "1"}
        if self._target == "ascend":
            visible = env.get("ASCEND_RT_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(self._size * self._tp)]
            mine = devices[index * self._tp : (index + 1) * self._tp]
            if len(mine) < self._tp:
                raise UserError(
                    f"rollout.workers {self._size} x tensor_parallel {self._tp} need "
                    f"{self._size * self._tp} devices, {len(devices)} are visible"
                )
            env["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(mine)
        else:
            cores = len(self._cores or os.sched_getaffinity(0))
            threads = str(max(1, cores // self._size))
            env["OMP_NUM_THREADS"] = threads if self._cores else env.get("OMP_NUM_THREADS", threads)
            env.setdefault("OMP_WAIT_POLICY", "passive")
        return env

    def _kill(self) -> None:
        for worker in list(self._workers.values()):
            worker.kill()
        self._workers.clear()


def _cause(worker: Worker) -> str:
    """Why a worker has died, and what helps where memory or threads ran out."""
    why = worker.why or worker.exit_reason()
    helps = out_of_memory.remedy("rollout") if out_of_memory.is_oom(why) else out_of_memory.no_thread(why)
    return f"{why}; {helps}" if helps else why
