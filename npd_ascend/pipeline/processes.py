"""Child processes that never outlive the executor and whose words are kept."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from npd_ascend import out_of_memory
from npd_ascend.progress import ENV as PROGRESS_ENV

_PR_SET_PDEATHSIG = 1
_GRACE_S = 10.0


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel kills this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tie(pid: int, cores: Sequence[int]) -> None:
    """Ties a process that has just been started, and so all its threads and children, to some cores."""
    try:
        os.sched_setaffinity(pid, cores)
    except ProcessLookupError:
        pass  # it has ended already, and its exit code says why


def child_environment(python: Path, progress: Path, **extra: str) -> dict[str, str]:
    """Environment of a child: its interpreter's folder first on PATH (msrun starts the ``python`` it finds there),
    the progress file, quiet engines."""
    env = dict(os.environ)
    env["PATH"] = f"{python.parent}{os.pathsep}{env.get('PATH', '')}"
    env[PROGRESS_ENV] = str(progress.resolve())
    env.setdefault("GLOG_v", "3")
    env.setdefault("HF_HUB_OFFLINE", "1")
    env.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin for work take the cores from other stages
    env.setdefault("TOKENIZERS_PARALLELISM", "true")
    env["PYTHONUNBUFFERED"] = "1"
    env.update(extra)
    return env


class Child:
    """One process group with a log file.

    Args:
        name: for messages.
        command: argv.
        env: environment.
        log: file that takes stdout and stderr; what earlier tries wrote stays above.
        cores: CPU cores that the group is tied to; None: all.
    """

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], log: Path, cores: Sequence[int] | None = None
    ):
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self._kills = out_of_memory.kernel_kills()
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        if cores is not None:
            tie(self._process.pid, cores)

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        return self._process.wait()

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

    def stop(self) -> None:
        """Asks the whole group to end, then makes it."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                pass
        self._signal(signal.SIGKILL)  # whatever of the group is left
        self._process.wait()

    def log_tail(self, lines: int = 1) -> str:
        """End of the log, for an error message."""
        try:
            with open(self.log, "rb") as f:
                f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
                text = f.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(text[-lines:])

    def ran_out_of_memory(self) -> bool:
        """Of a child that died without a word of its own: whether the kernel killed for memory meanwhile, or the
        engine said so at the end of the log."""
        return out_of_memory.kernel_kills() > self._kills or out_of_memory.is_oom(self.log_tail(20))

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass
