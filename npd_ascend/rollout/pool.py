"""Rollout workers as seen from the conductor: started, watched, restarted, stopped. No engine is imported here.

Workers talk over their pipes (``worker.py`` has the protocol). Each leads a process group of its own, so its
engine's processes die with it, and ends by itself when this process dies, because its stdin then ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.config.jobs import RolloutJob
from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.progress import Meter, message
from npd_ascend.rollout import live
from npd_ascend.rollout.live import LiveBatch
from npd_ascend.rollout.shards import Board
from npd_ascend.rollout.stage import Tally

_TICK_S = 0.2
_EXIT_S = 5.0


class PoolClosed(Exception):
    """``close`` was called while a job was running (from another thread, or a signal handler)."""


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
        meter: makes the progress meter of a job.
    """

    def __init__(self, python: Path, workers: int, logs: Path, *, target: str = "cpu", tensor_parallel: int = 1,
                 env: Mapping[str, str] | None = None, meter: Callable[..., Meter] = Meter):
        self.python, self.logs, self._meter = Path(python), Path(logs), meter
        self._size = workers
        self._env = {**os.environ, **(env or {})}
        self._target, self._tp = target, tensor_parallel
        self._events: queue.Queue[tuple[_Process, dict[str, Any]]] = queue.Queue()
        self._workers: dict[int, _Process] = {}
        self._closed = False

    def start(self) -> None:
        """Starts the workers that are not up, so that the interpreters load while other work goes on."""
        for i in range(self._size):
            self._worker(i)

    def run(self, job: RolloutJob) -> None:
        """Makes the rollouts of a job; returns at once when they are complete.

        A worker that dies, or shows no step of its engine for ``settings.hang_seconds``, is replaced; what it had
        finished is in the journals and the rest is generated again.

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
            self._run(job, wanted, tally)
            tally.close(complete=True)
        except BaseException:
            self._kill()
            raise
        with Board(job) as board:
            if not board.finish():
                raise UserError(f"{job.out}: the workers ended with shards still missing; run the same command again")

    def answer(self, job: RolloutJob, prompts: Sequence[np.ndarray], seeds: Sequence[int | None]) -> LiveBatch:
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
                elif event["event"] == "answers":
                    worker.busy = False
                    return live.read(event, load, started)
                elif event["event"] == "restart":
                    self._assign(0, command, anew=True)
                elif event["event"] == "error":
                    raise UserError(event["text"])
                elif event["event"] == "died":
                    raise UserError(f"rollout worker failed ({worker.why or worker.epitaph()}); see {worker.log}")
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

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- inside

    def _run(self, job: RolloutJob, wanted: int, tally: Tally) -> None:
        command = {"cmd": "run", "job": job.model_dump(mode="json")}
        for i in range(wanted):
            self._assign(i, command)
        failures = 0
        while any(w.busy for w in list(self._workers.values())):
            self._kill_hanging(job.settings.hang_seconds)
            try:
                worker, event = self._events.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if self._workers.get(worker.index) is not worker:
                continue  # the last words of a process that was replaced
            worker.heard = time.monotonic()
            if event["event"] == "progress":
                tally(event["samples"], event["tokens"], {int(i): n for i, n in event["have"].items()})
            elif event["event"] == "loaded":
                verb = {"start": "engine started", "reload": "weights reloaded"}[event["how"]]
                message(f"rollout worker {worker.index}: {verb} in {event['seconds']:.1f} s")
            elif event["event"] == "done":
                worker.busy = False
            elif event["event"] == "restart":
                self._assign(worker.index, command, anew=True)
            elif event["event"] == "error":
                if event["kind"] == "corrupt":
                    raise CorruptShard(event["dataset"], event["index"], "found by a rollout worker")
                if event["kind"] == "user":
                    raise UserError(event["text"])
                worker.why = event["text"]  # its death follows, and is counted then
            elif event["event"] == "died" and not worker.busy:
                del self._workers[worker.index]
            elif event["event"] == "died":
                failures += 1
                why = worker.why or worker.epitaph()
                if failures > job.settings.max_failures:
                    raise UserError(f"rollout worker {worker.index} failed ({why}), failure {failures} of this job "
                                    f"and rollout.max_failures is {job.settings.max_failures}; see {worker.log}")
                message(f"rollout worker {worker.index} failed ({why}); starting another", level="warning")
                self._assign(worker.index, command, anew=True)
        if self._closed:
            raise PoolClosed("the rollout pool was closed")

    def _kill_hanging(self, hang_seconds: float) -> None:
        for worker in list(self._workers.values()):
            if worker.busy and not worker.why and time.monotonic() - worker.heard > hang_seconds:
                worker.why = f"showed no progress for {hang_seconds:g} s (rollout.hang_seconds)"
                worker.kill()  # its death is the next event

    def _assign(self, index: int, command: dict[str, Any], anew: bool = False) -> None:
        if anew and index in self._workers:
            self._workers.pop(index).kill()
        worker = self._worker(index)
        worker.busy, worker.heard = True, time.monotonic()
        worker.send(command)

    def _worker(self, index: int) -> _Process:
        if self._closed:
            raise PoolClosed("the rollout pool was closed")
        old = self._workers.get(index)
        if old is None or not old.alive:
            if old is not None:
                old.kill()
            self.logs.mkdir(parents=True, exist_ok=True)
            self._workers[index] = _Process(index, self.python, self.logs / f"rollout-{index}.log",
                                            self._environment(index), self._events)
        return self._workers[index]

    def _environment(self, index: int) -> dict[str, str]:
        env = {**self._env, "PYTHONUNBUFFERED": "1"}
        if self._target == "ascend":
            visible = env.get("ASCEND_RT_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(self._size * self._tp)]
            mine = devices[index * self._tp: (index + 1) * self._tp]
            if len(mine) < self._tp:
                raise UserError(f"rollout.workers {self._size} x tensor_parallel {self._tp} need "
                                f"{self._size * self._tp} devices, {len(devices)} are visible")
            env["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(mine)
        else:
            cores = len(os.sched_getaffinity(0))
            env.setdefault("OMP_NUM_THREADS", str(max(1, cores // self._size)))
            env.setdefault("OMP_WAIT_POLICY", "passive")
        return env

    def _kill(self) -> None:
        for worker in list(self._workers.values()):
            worker.kill()
        self._workers.clear()


class _Process:
    """One worker process, its pipes and what is known of it."""

    def __init__(self, index: int, python: Path, log: Path, env: dict[str, str],
                 events: queue.Queue[tuple[_Process, dict[str, Any]]]):
        self.index, self.log = index, log
        self.busy, self.why, self.heard = False, "", time.monotonic()
        try:
            with open(log, "ab") as err:
                self._popen = subprocess.Popen(
                    [str(python), "-m", "npd_ascend.rollout.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=err, env=env, start_new_session=True)
        except OSError as e:
            raise UserError(f"{python}: cannot be started ({e.strerror}); run scripts/setup_env.sh") from None
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def send(self, command: dict[str, Any]) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write((json.dumps(command) + "\n").encode())
            self._popen.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is dead, and the listener says so

    def wait(self, seconds: float) -> None:
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pass

    def kill(self) -> None:
        """Ends the process and all that it started. Finished samples are safe, so there is nothing to wait for."""
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._popen.wait()
        if self._popen.stdin is not None:
            try:
                self._popen.stdin.close()
            except BrokenPipeError:
                pass

    def epitaph(self) -> str:
        """How it ended: signal or exit code."""
        code = self._popen.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _listen(self, events: queue.Queue[tuple[_Process, dict[str, Any]]]) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stdout:
            for line in stdout:
                try:
                    events.put((self, json.loads(line)))
                except ValueError:
                    continue  # a line torn by a kill
        events.put((self, {"event": "died"}))
