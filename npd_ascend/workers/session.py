"""Workers of one kind, to which jobs are sent: started, watched, restarted, stopped. No engine is imported here.

The owner does not see where a worker runs, nor whether it is one process or many. Each leads a process group of its
own, so its engine's processes die with it, and ends by itself when this process dies.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npd_ascend import out_of_memory, progress
from npd_ascend.config.job import Job
from npd_ascend.config.schema import WorkerConfig
from npd_ascend.errors import CorruptShard, CorruptSnapshot, UserError
from npd_ascend.progress import Meter, message
from npd_ascend.workers import failures
from npd_ascend.workers.failures import PoolClosed
from npd_ascend.workers.local import Events, LocalWorker, Worker
from npd_ascend.workers.shares import Shares, Tally

_TICK_S = 0.2
_EXIT_S = 5.0
_AGAIN_S = 5.0


@dataclass
class Work:
    """A job on its way to workers. What is handed out piece by piece is a kind of its own (``rollout/questions.py``).

    Attributes:
        module: package of the stage.
        job: the job.
        section: of the configuration, in which ``settings`` are.
        settings: when a worker is given up.
        shares: its shards, where several workers may share them; None: one worker does it.
    """

    module: str
    job: Job
    section: str
    settings: WorkerConfig
    shares: Shares | None = None

    def left(self) -> set[int]:
        """Numbers of what is left that no worker may have."""
        return self.shares.missing() if self.shares is not None else set()

    def command(self, index: int) -> dict[str, Any] | None:
        """What a worker is to do that has nothing to do; None: nothing is left for it."""
        return command(self.module, self.job)

    def hear(self, index: int, event: dict[str, Any]) -> bool:
        """Takes what a worker has done; returns whether it is still at it."""
        return bool(event["event"] != "done")

    def more(self, index: int) -> dict[str, Any] | None:
        """What a worker is to do as well, or None."""
        return None

    def lose(self, index: int) -> None:
        """A worker is gone."""


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
            wanted = max(1, min(self.size, len(work.shares.missing())))
            tally = Tally(work.shares, self._meter)
        try:
            results = _Doing(self, work, tally).run(wanted)
        except BaseException:
            self._kill()
            raise
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
            self._workers[index] = self._hire(index, self._events)
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
        self._failures, self._before = 0, ""
        self._orphans, self._left = False, set[int]()
        self._since = self._next = 0.0
        self._acts: dict[str, Callable[[Worker, dict[str, Any]], None]] = {
            "ready": lambda worker, event: None,
            "compiling": self._unsettled,
            "loaded": self._loaded,
            "placed": lambda worker, event: message(f"{self._who(worker)} is on {event['node']}"),
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
        while self._busy():
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

    def _busy(self) -> bool:
        """Whether anything is to be waited for. Shards that a worker left which had no successor go to the others, also
        those that it holds on to for a while, on a node that is out of reach but not dead."""
        workers = list(self.session._workers.values())
        if any(w.busy for w in workers):
            return True
        left = self.work.left() if self._orphans else set()
        now = time.monotonic()
        if left != self._left:
            self._left, self._since = left, now
        if not left or not workers or now - self._since > self._settings.hang_seconds:
            return False
        if now >= self._next:
            self._next = now + _AGAIN_S
            for worker in workers:
                self._give(worker.index)
        return True

    def _give(self, index: int, restart: bool = False) -> None:
        """Sets a worker to work, if anything is left for it."""
        if (told := self.work.command(index)) is not None:
            self.session._assign(index, told, restart)

    def _again(self, worker: Worker) -> None:
        """Another process takes the place of a worker."""
        worker.busy = False
        self.work.lose(worker.index)
        self._give(worker.index, restart=True)

    def _kill_hanging(self) -> None:
        s = self._settings
        for worker in list(self.session._workers.values()):
            # Loading, compiling and the first steps of an engine take their time and give no sign.
            limit = s.hang_seconds if worker.settled else max(s.hang_seconds, s.start_seconds)
            if worker.busy and not worker.why and time.monotonic() - worker.heard > limit:
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
        self._orphans = True
        if not self.session._workers:
            raise UserError(f"{event['text']}; nowhere to run {self.session.name}")
        message(f"{self._who(worker)}: {event['text']}; the others go on", level="warning")

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
            raise UserError(
                f"{self._who(worker)} failed ({why}), failure {self._failures} of this job "
                f"and {self.work.section}.max_failures is {limit}; see {worker.log}"
            )
        message(f"{self._who(worker)} failed ({why}); starting another", level="warning")
        self._again(worker)

    def _who(self, worker: Worker) -> str:
        return f"{self.session.name} worker {worker.index}"
