"""Running out of memory, threads or disk, in whatever form it comes: an exception, last words, the kernel's SIGKILL."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npd_ascend.config.stages import Stage, of_module
from npd_ascend.errors import MachineError, of_the_disk

_SIGNS = re.compile(
    r"(?<!lead to )out of memory"  # torch, torch_npu, MindSpore ("Out of Memory!!!"), operating system
    r"|memory (isn't|is not|not) enough|(not enough|insufficient) memory"  # MindSpore's kernels and device pools
    r"|(can't|cannot|unable to|failed to|fail to) (re)?alloc\w*[^\n]{0,40}(mem|bytes|[KMGT]i?B)"
    r"|alloc\w* ([\w']+ )*mem(ory)? fail|bad_alloc"
    r"|EL0004|EL0008|(halMemAlloc|rtMalloc|aclrtMalloc\w*)[^\n]{0,40}fail",  # driver and runtime of an NPU
    re.IGNORECASE,
)
_NO_THREAD = re.compile(
    r"Resource temporarily unavailable"  # std::system_error of MindSpore and torch, fork(2)
    r"|can't start new thread|pthread_create|Thread creation failed|blas_thread_init"  # Python, libgomp, OpenBLAS
)


def is_oom(what: BaseException | str) -> bool:
    """Whether an exception, or the text that a process left behind, says that memory ran out."""
    return isinstance(what, MemoryError) or _SIGNS.search(str(what)) is not None


def remedy(module: str) -> str:
    """Settings that help where memory ran out in a stage that this module runs."""
    stage = of_module(module)
    return stage.memory if stage else Stage.memory


def no_thread(what: BaseException | str) -> str | None:
    """What to tell the user when a thread or a process could not be started; None for any other error.

    The kernel's answer (EAGAIN) is the same for a limit of processes and for a stack that finds no room, so the line
    shows the limits there are.
    """
    if _NO_THREAD.search(str(what)) is None:
        return None
    limits = [f"ulimit -u is {_limit(resource.RLIMIT_NPROC)}", f"ulimit -v is {_limit(resource.RLIMIT_AS, 1024)}"]
    try:
        limits.append(f"pids.max of the container is {(_cgroup() / 'pids.max').read_text().strip()}")
    except OSError:
        pass
    return (
        f"no further thread or process could be started ({', '.join(limits)}); raise the limit that is reached, "
        "or start fewer with OMP_NUM_THREADS=1 and fewer workers"
    )


def advice(what: BaseException | str, module: str) -> str | None:
    """What to tell the user when memory or threads ran out in a stage; None for any other error."""
    return f"out of memory; {remedy(module)}" if is_oom(what) else no_thread(what)


@contextmanager
def as_machine_error() -> Iterator[None]:
    """Within it, an exception which says that disk, memory or threads ran out becomes a ``MachineError``."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as e:
        cause = (of_the_disk(e) if isinstance(e, OSError) else None) or advice(e, "")
        if cause is None:
            raise
        raise MachineError(cause) from e


def kernel_kills() -> int:
    """Processes that the kernel has killed for want of memory so far: of this machine, and of this container.

    A process that dies by SIGKILL while this grows was not killed by hand.
    """
    return _count(Path("/proc/vmstat")) + _count(_cgroup() / "memory.events")


def _limit(which: int, unit: int = 1) -> str:
    soft = resource.getrlimit(which)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft // unit)


def _cgroup() -> Path:
    """Folder of this process's control group (version 2)."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return root
    return next((root / line[3:].lstrip("/") for line in lines if line.startswith("0::")), root)


def _count(path: Path) -> int:
    try:
        return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return 0


def free_bytes() -> int:
    """Memory that this host could give to a process; 0 where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 0)


def resident_bytes(pid: int) -> int:
    """Memory that a process and all it has started hold, pages they share counted for each; 0 where /proc is not."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        one = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(one)
        pages[one] = int(fields[21])
    total, left = 0, [pid]
    while left:
        one = left.pop()
        total += pages.get(one, 0)
        left += children.get(one, [])
    return total * os.sysconf("SC_PAGE_SIZE")
