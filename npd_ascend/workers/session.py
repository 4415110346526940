"""Workers of one kind, to which jobs are sent: started, watched, restarted, stopped. No engine is imported here.

The owner does not see where a worker runs, nor whether it is one process or many. Each leads a process group of its
own, so its engine's processes die with it, and ends by itself when this process dies.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from npd_ascend import out_of_memory, progress
from npd_ascend.config.job import Job
from npd_ascend.config.schema import WorkerConfig
from npd_ascend.errors import CorruptShard, CorruptSnapshot, UserError
from npd_ascend.progress import Meter, message
from npd_ascend.store.claims import Tickets
from npd_ascend.workers import failures
from npd_ascend.workers.failures import PoolClosed
from npd_ascend.workers.local import Events, LocalWorker, Worker
from npd_ascend.workers.shares import Shares, Tally

_TICK_S = 0.2
_EXIT_S = 5.0
_LATE_S = 2.0
PATIENT = WorkerConfig(max_failures=0, hang_seconds=1e9, start_seconds=1e9)
"""Of a worker whose silence says nothing, and whose death is the end of its job."""


@dataclass
class Work:
    """A job on its way to workers. What is handed out piece by piece is a kind of its own (``rollout/questions.py``).

    Attributes:
        module: package of the stage.
        job: the job.
        section: of the configuration, in which ``settings`` are; empty: it says nothing of them.
        settings: when a worker is given up.
        shares: its shards, where several workers may share them; None: one worker does it.
    """

    module: str
    job: Job
    section: str
    settings: WorkerConfig
    shares: Shares | None = None
    _tickets: Tickets | None = field(default=None, init=False)
    _lost: bool = field(default=False, init=False)

    def open(self) -> int:
        """Lays out what workers are to share; returns for how many of them there is something."""
        if self.shares is None:
            return 1
        self._tickets = Tickets(self.shares.folder, self.shares.missing)
        return max(1, len(self._tickets.free))

    def close(self) -> None:
        """Nothing that a worker does from now on counts."""
        if self._tickets is not None:
            self._tickets.close()

    def left(self) -> bool:
        """Whether there is something that no worker has: a shard, or what completes the dataset after the last one."""
        if self.shares is None or self._tickets is None:
            return False
        return bool(self._tickets.free or (self._lost and not self._tickets.workers and not self.shares.complete()))

    def command(self, index: int) -> dict[str, Any] | None:
        """What a worker is to do that has nothing to do; None: nothing is left for it."""
        if self._tickets is None:
            return command(self.module, self.job)
        self._lost = False
        return command(self.module, self.job.model_copy(update={"own": self._tickets.admit(index)}))

    def hear(self, index: int, event: dict[str, Any]) -> bool:
        """Takes what a worker has done; returns whether it is still at it."""
        if event["event"] == "done" and self._tickets is not None:
            self._tickets.expel(index)
        return bool(event["event"] != "done")

    def more(self, index: int) -> dict[str, Any] | None:
        """What a worker is to do as well, or None."""
        return None

    def lose(self, index: int) -> None:
        """A worker is gone: what it had waits again."""
        self._lost = True
        if self._tickets is not None:
            self._tickets.expel(index)


def command(module: str, job: Job) -> dict[str, Any]:
    """What a worker is told."""
    return {"module": module, "kind": type(job).__name__, "job": job.model_dump(mode="json")}


class Session:
    """Workers that share one job at a time, and live on for the next.

    Args:
        name: for messages, e.g. ``rollout``.
        hire: starts worker number i, whose events go to a queue.
        size: how many there are at the most.
        meter: makes the progress meter of a shared job.
    """

    def __init__(
        self, name: str, hire: Callable[[int, Events], Worker], size: int = 1, meter: Callable[..., Meter] = Meter
    ):
        self.name, self.size, self._hire, self._meter = name, size, hire, meter
        self._events: Events = queue.Queue()
        self._workers: dict[int, Worker] = {}
        self._closed = False

    def start(self) -> None:
        """Starts the workers that are not up, so that the interpreters load while other work goes on."""
        for i in range(self.size):
            self._worker(i)

    def do(self, work: Work, wanted: int = 1) -> list[Any]:
        """Has a job done; returns at once when its shards are all there.

        A worker that dies, or shows no progress for ``hang_seconds`` (``start_seconds`` before its first), is replaced;
        what it had finished is stored, and the rest is done again.

        Args:
            work: the job.
            wanted: how many workers take part; where it has shares, as many as there are shards left.

        Returns:
            What each worker that took part gave back.

        Raises:
            UserError: of the job itself, an error that comes again each time, or more than ``max_failures`` failures.
            CorruptShard: an input is damaged.
            PoolClosed: see there.
        """
        tally = None
        if work.shares is not None:
            if work.shares.complete():
                return []
            tally = Tally(work.shares, self._meter)
            wanted = min(self.size, work.open())
        try:
            results = _Doing(self, work, tally).run(wanted)
        except BaseException:
            self._kill()
            raise
        finally:
            work.close()
        if tally is not None:
            tally.close(complete=True)
        return results

    @property
    def memory(self) -> int:
        """Bytes that workers on this machine hold, with all that they have started."""
        return sum(out_of_memory.resident_bytes(w.pid) for w in self._workers.values() if isinstance(w, LocalWorker))

    def close(self) -> None:
        """Stops all workers, those at work too; may be called twice and from any thread."""
        self._closed = True
        self.leave()

    def leave(self) -> None:
        """Ends the workers; the next job gets new ones."""
        for worker in list(self._workers.values()):
            worker.send({"exit": True})
        deadline = time.monotonic() + _EXIT_S
        for worker in list(self._workers.values()):
            if not worker.busy:
                worker.wait(max(0.0, deadline - time.monotonic()))
        self._kill()

    @property
    def closed(self) -> bool:
        """Whether it takes no more jobs."""
        return self._closed

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- for the job at hand

    def _assign(self, index: int, command: dict[str, Any], restart: bool = False) -> None:
        if restart and index in self._workers:
            self._workers.pop(index).kill()
        worker = self._worker(index)
        worker.busy, worker.heard = True, time.monotonic()
        worker.send(command)

    def _worker(self, index: int) -> Worker:
        if self._closed:
            raise PoolClosed(f"the {self.name} workers were closed")
        old = self._workers.get(index)
        if old is None or not old.alive:
            if old is not None:
                old.kill()
            worker = self._workers[index] = self._hire(index, self._events)
            assert worker.index == index, "its events would be taken for those of another"
        return self._workers[index]

    def _kill(self) -> None:
        for worker in list(self._workers.values()):
            worker.kill()
        self._workers.clear()


class _Doing:
    """One job at work in a session."""

    def __init__(self, session: Session, work: Work, tally: Tally | None):
        self.session, self.work, self.tally = session, work, tally
        self._settings = work.settings
        self._results: list[Any] = []
        self._failures, self._before, self._looked = 0, "", time.monotonic()
        self._acts: dict[str, Callable[[Worker, dict[str, Any]], None]] = {
            "ready": lambda worker, event: None,
            "compiling": self._unsettled,
            "loaded": self._loaded,
            "unplaced": self._unplaced,
            "done": self._done,
            "replies": self._done,
            "restart": lambda worker, event: self._again(worker),
            "error": self._error,
            "died": self._died,
        }

    def run(self, wanted: int) -> list[Any]:
        session = self.session
        for i in range(wanted):
            self._give(i)
        while any(w.busy for w in session._workers.values()):
            self._kill_hanging()
            try:
                worker, event = session._events.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if session.closed:
                break
            if session._workers.get(worker.index) is worker:  # else the last words of a process that was replaced
                worker.heard = time.monotonic()
                self._acts.get(event["event"], self._progress)(worker, event)
        if session.closed:
            raise PoolClosed(f"the {session.name} workers were closed")
        return self._results

    def _give(self, index: int, restart: bool = False) -> None:
        """Sets a worker to work, if anything is left for it."""
        if (told := self.work.command(index)) is not None:
            self.session._assign(index, told, restart)

    def _share(self) -> None:
        """Gives what a worker has left to those that have nothing to do."""
        idle = [w.index for w in self.session._workers.values() if not w.busy]
        for index in idle:
            if self.work.left():
                self._give(index)

    def _again(self, worker: Worker) -> None:
        """Another process takes the place of a worker; meanwhile others may do what it had."""
        worker.busy = False
        self.work.lose(worker.index)
        self._give(worker.index, restart=True)
        self._share()

    def _kill_hanging(self) -> None:
        s, now = self._settings, time.monotonic()
        late, self._looked = now - self._looked, now
        for worker in list(self.session._workers.values()):
            if late > _LATE_S:  # this process was stopped or held up, and could hear nobody
                worker.heard += late
            # Loading, compiling and the first steps of an engine take their time and give no sign.
            limit = s.hang_seconds if worker.settled else max(s.hang_seconds, s.start_seconds)
            if worker.busy and not worker.why and now - worker.heard > limit:
                setting = "hang_seconds" if limit == s.hang_seconds else "start_seconds"
                worker.why = f"showed no progress for {limit:g} s ({self.work.section}.{setting})"
                worker.dump()
                worker.kill()  # its death is the next event

    # ---- what workers say

    def _progress(self, worker: Worker, event: dict[str, Any]) -> None:
        kind = event["event"]
        worker.settled |= kind in ("have", "progress", "end")
        if self.tally is not None and kind in ("have", "spent"):
            self.tally.take(worker.index, event)
        if kind != "have":
            progress.forward({**event, "worker": worker.index})

    def _unsettled(self, worker: Worker, event: dict[str, Any]) -> None:
        worker.settled = False

    def _loaded(self, worker: Worker, event: dict[str, Any]) -> None:
        worker.settled &= not event["again"]
        message(f"{self._who(worker)}: {event['text']}", event["level"])

    def _done(self, worker: Worker, event: dict[str, Any]) -> None:
        worker.settled = True
        worker.busy = self.work.hear(worker.index, event)
        if event["event"] == "done":
            self._results.append(event["result"])
        if (told := self.work.more(worker.index)) is not None:
            worker.busy = True
            worker.send(told)
        if not worker.busy:
            self._share()
        if self.work.shares is not None and self.work.shares.complete():
            for absent in [w for w in self.session._workers.values() if not w.placed]:
                self.session._workers.pop(absent.index).kill()  # nothing is left for it

    def _error(self, worker: Worker, event: dict[str, Any]) -> None:
        if event["kind"] == "corrupt" and event["index"] < 0:
            raise CorruptSnapshot(event["dataset"], f"found damaged by a {self.session.name} worker")
        if event["kind"] == "corrupt":
            raise CorruptShard(event["dataset"], event["index"], f"found by a {self.session.name} worker")
        if event["kind"] == "user":
            raise UserError(event["text"])
        worker.why = worker.why or event["text"]  # its death follows, and is counted then

    def _unplaced(self, worker: Worker, event: dict[str, Any]) -> None:
        del self.session._workers[worker.index]
        self.work.lose(worker.index)
        if not self.session._workers:
            raise UserError(f"{event['text']}; nowhere to run {self.session.name}")
        message(f"{self._who(worker)}: {event['text']}; the others go on", level="warning")
        self._share()

    def _died(self, worker: Worker, event: dict[str, Any]) -> None:
        if not worker.busy:
            del self.session._workers[worker.index]
            return
        self._failures += 1
        reason = worker.why or worker.exit_reason()
        helps = (
            out_of_memory.remedy(self.work.module) if out_of_memory.is_oom(reason) else out_of_memory.no_thread(reason)
        )
        why = f"{reason}; {helps}" if helps else reason
        again = reason == self._before and failures.is_error(reason)
        self._before = reason
        if again or failures.lasts(reason):
            twice = ", the same twice" if again else ""
            raise UserError(f"{self._who(worker)} failed ({why}){twice}; see {worker.log}")

        limit = self._settings.max_failures
        if self._failures > limit:
            setting = f" and {self.work.section}.max_failures is {limit}" if self.work.section else ""
            count = f", failure {self._failures} of this job" if limit else ""
            raise UserError(f"{self._who(worker)} failed ({why}){count}{setting}; see {worker.log}")
        message(f"{self._who(worker)} failed ({why}); starting another", level="warning")
        self._again(worker)

    def _who(self, worker: Worker) -> str:
        return f"{self.session.name} worker {worker.index}"
