"""What workers need of the operating system: death with the parent, cores, memory, ports, environment, stacks."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG, _PR_SET_PTRACER, _ANY = 1, 0x59616D61, -1
_DUMP_S = 20.0


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def allow_tracing() -> None:
    """Lets a process of the same user that is no ancestor read this one's stacks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY))


def tie(pid: int, cores: Sequence[int]) -> None:
    """Ties a process that has just been started, and so all its threads and children, to some cores."""
    try:
        os.sched_setaffinity(pid, cores)
    except ProcessLookupError:
        pass  # it has ended already, and its exit code says why


def descendants(pid: int) -> list[int]:
    """A process and all that it has started and that still runs; empty where /proc is not."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def child_environment(python: Path, **extra: str) -> dict[str, str]:
    """Environment of a worker: its interpreter's folder first on PATH (msrun starts the ``python`` it finds there),
    quiet engines."""
    env = dict(os.environ)
    env["PATH"] = f"{python.parent}{os.pathsep}{env.get('PATH', '')}"
    env.setdefault("GLOG_v", "3")
    env.setdefault("HF_HUB_OFFLINE", "1")
    env.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin for work take the cores from other stages
    env.setdefault("TOKENIZERS_PARALLELISM", "true")
    env["PYTHONUNBUFFERED"] = "1"
    env.update(extra)
    return env


def dump_stacks(pids: Iterable[int], log: IO[bytes]) -> None:
    """Writes what every thread of some workers is doing: the Python stacks by the workers' own handler of SIGUSR1,
    which prints to their logs, the native ones by py-spy or gdb, where one of them is installed.

    Args:
        pids: workers (``process.main`` has set the handler up).
        log: takes the native stacks.
    """
    for pid in pids:
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            continue
        for command in _tracers(pid):
            log.write(f"\nstacks of process {pid}, by {Path(command[0]).name}:\n".encode())
            log.flush()
            try:
                if (
                    subprocess.run(
                        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=_DUMP_S
                    ).returncode
                    == 0
                ):
                    break
            except (OSError, subprocess.TimeoutExpired):
                continue
    time.sleep(0.2)  # the handler of a process that is not stopped has written by then


def _tracers(pid: int) -> list[list[str]]:
    """Command lines that print the native stacks of a process, the best first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    known = (
        ("py-spy", ["dump", "--native", "--pid", str(pid)]),
        ("gdb", ["-p", str(pid), "-batch", "-ex", "thread apply all backtrace 40"]),
    )
    return [[found, *args] for name, args in known if (found := shutil.which(name, path=path))]
