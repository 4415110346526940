"""Running out of memory, in whatever form it comes: an exception, an engine's last words, the kernel's SIGKILL."""

from __future__ import annotations

import re
from pathlib import Path

_SIGNS = re.compile(
    r"(?<!lead to )out of memory"  # torch, torch_npu, MindSpore ("Out of Memory!!!"), operating system
    r"|memory (isn't|is not|not) enough|(not enough|insufficient) memory"  # MindSpore's kernels and device pools
    r"|(can't|cannot|unable to|failed to|fail to) (re)?alloc\w*[^\n]{0,40}(mem|bytes|[KMGT]i?B)"
    r"|alloc\w* ([\w']+ )*mem(ory)? fail|bad_alloc"
    r"|EL0004|EL0008|(halMemAlloc|rtMalloc|aclrtMalloc\w*)[^\n]{0,40}fail",  # driver and runtime of an NPU
    re.IGNORECASE,
)
_REMEDIES = {
    "rollout": "lower rollout.max_num_seqs, rollout.kv_cache_gib, rollout.memory_fraction or rollout.workers",
    "annotate": "lower annotate.micro_batch, annotate.vocab_chunk_rows, annotate.row_length or annotate.workers, or "
    "cut the teacher over devices with annotate.tensor_parallel",
    "train": "lower train.micro_batch, train.vocab_chunk_rows or pack.row_length (train.global_batch may stay), or set "
    "train.recompute: true; train.optimizer_sharding and train.tensor_parallel cut the model over devices",
}


def told_by(what: BaseException | str) -> bool:
    """Whether an exception, or the text that a process left behind, says that memory ran out."""
    return isinstance(what, MemoryError) or _SIGNS.search(str(what)) is not None


def remedy(room: str) -> str:
    """Settings that help in a stage."""
    return _REMEDIES.get(room, "use a larger machine")


def kernel_kills() -> int:
    """Processes that the kernel has killed for want of memory so far: of this machine, and of this container.

    A process that dies by SIGKILL while this grows was not killed by hand.
    """
    return _count(Path("/proc/vmstat")) + _count(_cgroup() / "memory.events")


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
