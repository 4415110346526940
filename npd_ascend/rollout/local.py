"""A rollout worker that is a child process of the executor."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from npd_ascend import out_of_memory
from npd_ascend.errors import UserError


class Worker(Protocol):
    """What the pool needs of a worker, wherever it runs.

    Attributes:
        index: its number in the pool.
        log: file that takes what it prints.
        busy: whether it is at work on a job.
        why: cause of its coming death, where the pool knows it.
        heard: monotonic time of its last word.
        settled: whether its engine has worked before; until then silence means little.
    """

    index: int
    log: Path
    busy: bool
    why: str
    heard: float
    settled: bool

    @property
    def alive(self) -> bool: ...
    def send(self, command: dict[str, Any]) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def kill(self) -> None: ...
    def exit_reason(self) -> str: ...


class LocalWorker:
    """One worker process, its pipes and what is known of it."""

    def __init__(
        self,
        index: int,
        python: Path,
        log: Path,
        env: dict[str, str],
        cores: Sequence[int] | None,
        events: queue.Queue[tuple[Any, dict[str, Any]]],
    ):
        self.index, self.log = index, log
        self.busy, self.why, self.heard, self.settled = False, "", time.monotonic(), False
        self._kills = out_of_memory.kernel_kills()
        try:
            with open(log, "ab") as err:
                self._popen = subprocess.Popen(
                    [str(python), "-m", "npd_ascend.rollout.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    env=env,
                    start_new_session=True,
                )
        except OSError as e:
            helps = out_of_memory.no_thread(e) or "run scripts/setup_env.sh"
            raise UserError(f"{python}: cannot be started ({e.strerror}); {helps}") from None
        if cores is not None and self._popen.poll() is None:
            os.sched_setaffinity(self._popen.pid, cores)
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

    def exit_reason(self) -> str:
        """How it ended: signal or exit code."""
        code = self._popen.wait()
        if code == -signal.SIGKILL and out_of_memory.kernel_kills() > self._kills:
            return "killed by the kernel: out of memory"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _listen(self, events: queue.Queue[tuple[Any, dict[str, Any]]]) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stdout:
            for line in stdout:
                try:
                    events.put((self, json.loads(line)))
                except ValueError:
                    continue  # a line torn by a kill
        events.put((self, {"event": "died"}))
