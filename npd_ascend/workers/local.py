"""A worker on this machine: a process, or the group of ranks that msrun makes of one."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from npd_ascend import out_of_memory
from npd_ascend.errors import UserError
from npd_ascend.progress import STARTED
from npd_ascend.workers.failures import last_error
from npd_ascend.workers.process import SOCKET
from npd_ascend.workers.rank import LOG
from npd_ascend.workers.system import descendants, die_with_parent, dump_stacks, tie

Events = queue.Queue[tuple["Worker", dict[str, Any]]]
# A worker dies with the thread that started it (``die_with_parent``), so that must be one which stays.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="start workers")
_TAIL = 1 << 16


class Worker(Protocol):
    """What a session needs of a worker, wherever it runs.

    Attributes:
        index: its number in the session.
        log: file that takes what it prints.
        busy: whether it is at work on a job.
        why: cause of its coming death, where it is known.
        heard: monotonic time of its last event.
        settled: whether its engine has worked before; until then silence means little.
        placed: whether the node that it is to run on is there.
    """

    index: int
    log: Path
    busy: bool
    why: str
    heard: float
    settled: bool
    placed: bool

    @property
    def alive(self) -> bool: ...
    def send(self, command: dict[str, Any]) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def dump(self) -> None: ...
    def kill(self) -> None: ...
    def exit_reason(self) -> str: ...


class LocalWorker:
    """A worker process, or a group of ranks, and what is known of it.

    Args:
        index: its number among its like.
        command: argv; of ``process.py``, behind msrun for a group.
        env: environment.
        log: file that takes what it prints; what earlier ones wrote stays above.
        events: where its events go, each with this object. The last one is ``died``.
        cores: CPU cores that it is tied to; None: all.
        group: msrun makes a group of it. All ranks get each command; heard are rank 0, and errors of all.

    Raises:
        UserError: it cannot be started.
    """

    placed = True

    def __init__(
        self,
        index: int,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        events: Events,
        cores: Sequence[int] | None = None,
        group: bool = False,
    ):
        self.index, self.log = index, log
        self.busy, self.why, self.heard, self.settled = False, "", time.monotonic(), False
        self._events = events
        self._pids: list[int] = []
        self._kills = out_of_memory.kernel_kills()
        self._line: _Pipe | _Socket = _Socket(log) if group else _Pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out:
            self._since = out.tell()
            self._popen = _STARTER.submit(self._start, list(command), env, out).result()
        if cores is not None:
            tie(self._popen.pid, cores)
        self._line.listen(self._popen, self._take, self._died)

    def _start(self, command: list[str], env: Mapping[str, str], out: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                env={**env, STARTED: repr(time.time()), **self._line.env},
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,  # also of msrun, and of one that is stopped
                **self._line.ends(out),
            )
        except OSError as e:
            helps = out_of_memory.no_thread(e) or "run scripts/setup_env.sh"
            raise UserError(f"{command[0]}: cannot be started ({e.strerror}); {helps}") from None

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def send(self, command: dict[str, Any]) -> None:
        """Hands it a command; if it is dead, its last event says so."""
        self._line.send((json.dumps(command) + "\n").encode())

    def wait(self, seconds: float) -> None:
        """Waits until it has ended, for a limited time."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def dump(self) -> None:
        """Has the stacks of all its threads written to its log; of one in another container, as far as it does so."""
        mine = set(descendants(self._popen.pid))
        if not mine & set(self._pids):
            self.send({"stacks": True})
        with suppress(OSError), open(self.log, "ab") as log:
            dump_stacks([pid for pid in self._pids if pid in mine], log)

    def kill(self) -> None:
        """Ends the process and all that it started. What it had finished is stored, so there is nothing to wait for."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._line.close()

    def exit_reason(self) -> str:
        """How it ended: the last error in its log, signal or exit code."""
        code = self._popen.wait()
        if code == -signal.SIGKILL and out_of_memory.kernel_kills() > self._kills:
            return "killed by the kernel: out of memory"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        log = self._said()
        why = last_error(log)
        if not why and (out_of_memory.is_oom(log) or out_of_memory.no_thread(log)):
            why = log.strip().splitlines()[-1]
        return why or f"ended with exit code {code}"

    def _said(self) -> str:
        """The end of what it has printed."""
        try:
            with open(self.log, "rb") as f:
                f.seek(max(self._since, f.seek(0, os.SEEK_END) - _TAIL))
                return f.read().decode(errors="replace")
        except OSError:
            return ""

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            self._pids.append(event["pid"])
        self._events.put((self, event))

    def _died(self) -> None:
        self._events.put((self, {"event": "died"}))


class _Pipe:
    """The line to one process: its stdin and stdout."""

    env: Mapping[str, str] = {}

    def ends(self, out: IO[bytes]) -> dict[str, Any]:
        return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def listen(self, popen: subprocess.Popen[bytes], take: Any, died: Any) -> None:
        assert popen.stdin is not None and popen.stdout is not None
        self._stdin, self._stdout = popen.stdin, popen.stdout
        threading.Thread(target=self._listen, args=(take, died), daemon=True).start()

    def send(self, line: bytes) -> None:
        with suppress(OSError, ValueError):
            self._stdin.write(line)
            self._stdin.flush()

    def close(self) -> None:
        with suppress(OSError):
            self._stdin.close()

    def _listen(self, take: Any, died: Any) -> None:
        with self._stdout:
            for event in _events(self._stdout):
                take(event)
        died()


class _Socket:
    """The line to a group: each rank connects to a socket that its owner alone can reach."""

    def __init__(self, log: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="npd-"))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "line"))
        self._server.listen()
        self.env = {SOCKET: str(self._folder / "line"), LOG: str(log.absolute())}
        self._ranks: list[socket.socket] = []
        self._sent = b""  # for ranks that come later
        self._lock = threading.Lock()

    def ends(self, out: IO[bytes]) -> dict[str, Any]:
        return {"stdin": subprocess.DEVNULL, "stdout": out}

    def listen(self, popen: subprocess.Popen[bytes], take: Any, died: Any) -> None:
        threading.Thread(target=self._accept, args=(take,), daemon=True).start()
        threading.Thread(target=lambda: (popen.wait(), died()), daemon=True).start()

    def send(self, line: bytes) -> None:
        with self._lock:
            self._sent += line
            for rank in self._ranks:
                with suppress(OSError):
                    rank.sendall(line)

    def close(self) -> None:
        self._server.close()
        for rank in self._ranks:
            rank.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self, take: Any) -> None:
        with suppress(OSError):
            while True:
                rank, _ = self._server.accept()
                with self._lock:
                    self._ranks.append(rank)
                    rank.sendall(self._sent)
                threading.Thread(target=self._listen, args=(rank, take), daemon=True).start()

    def _listen(self, line: socket.socket, take: Any) -> None:
        rank = None
        with suppress(OSError), line.makefile("rb") as events:
            for event in _events(events):
                rank = event.get("rank", rank)
                if rank == 0 or event["event"] in ("ready", "error"):
                    take(event)


def _events(lines: IO[bytes]) -> Any:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # a line torn by a kill
