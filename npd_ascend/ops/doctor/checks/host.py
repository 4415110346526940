"""The host: cores, shared memory, and disk room against the plan."""

from __future__ import annotations

import os
import shutil

from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.registry import Patient, check
from npd_ascend.ops.plan import check_room
from npd_ascend.ops.plan.text import si

_SHM = {"cpu": 64 << 20, "ascend": 1 << 30}


@check
def cores(p: Patient) -> list[Finding]:
    """Cores that this process may use."""
    have = len(os.sched_getaffinity(0))
    ranks = len(p.machine.npus) if p.target == "ascend" else 0
    if ranks and have < 4 * ranks:
        return [
            warning(
                f"{have} CPU cores for {ranks} NPUs: launching kernels may be what takes the time",
                "give the container more cores (no --cpuset-cpus)",
            )
        ]
    return [ok(f"{have} CPU cores")]


@check
def shared_memory(p: Patient) -> list[Finding]:
    """/dev/shm, which engines and launchers talk through."""
    shm = p.machine.root / "dev/shm"
    if not shm.exists():
        return []
    total, least = shutil.disk_usage(shm).total, _SHM[p.target]
    if total < least:
        return [warning(f"/dev/shm has {total >> 20} MB", "start the container with --shm-size=1g or more")]
    return [ok(f"/dev/shm has {total >> 20:,} MB")]


@check
def disk(p: Patient) -> list[Finding]:
    """What the run will write against what is free."""
    if p.config is None:
        return []
    try:
        needed, free = check_room(p.config)
    except UserError as e:
        return [error(str(e))]
    if needed > free:
        return [
            warning(
                f"disk: about {si(needed)}B needed if answers are as long as the plan takes them to be, "
                f"{si(free)}B free",
                "free some, or point run.dir at a larger disk",
            )
        ]
    return [ok(f"disk: about {si(needed)}B needed, {si(free)}B free")]
