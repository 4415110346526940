"""Words by which memory's end is known, and a process that the kernel really kills."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from npd_ascend import out_of_memory
from npd_ascend.workers.local import LocalWorker


@pytest.mark.parametrize(
    "text",
    [
        "Unable to allocate 3.00 GiB for an array with shape (805306368,) and data type float32",  # numpy
        "[Errno 12] Cannot allocate memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)",  # torch
        "NPU out of memory. Tried to allocate 22.00 MiB (NPU 0; 60.97 GiB total capacity; 10.24 GiB already allocated)",
        "Malloc memory failed: size 4294967296.",  # MindSpore, CPU
        "#umsg#Framework Error Message:#umsg#Out of Memory!!! Request memory size: 301990400B",  # MindSpore, NPU
        "#umsg#Framework Error Message:#umsg#Malloc device memory failed, size[301990400], ret[207001]",
        "Device(id:0) memory isn't enough and alloc failed, kernel name: Default/MatMul-op1, alloc size: 4096B.",
        "Alloc device memory failed!",
        "Allocate memory failed",
        "The device memory is not enough, the free memory size is 1024",
        "Memory_Allocation_Failure(EL0004): Failed to allocate memory requested by GE module.",  # CANN
        "[driver interface] halMemAlloc failed: device_id=7, size=15069901824, type=2",
        "Call rtMalloc fail, purpose: page caching, type = 2, size:3221291008",
    ],
)
def test_words_of_the_engines(text):
    assert out_of_memory.is_oom(text) and out_of_memory.is_oom(RuntimeError("x\n" + text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the shapes do not match",
        "device memory: 58GB",
        "cannot allocate port 8118: it is in use",
        "It may lead to Out Of Memory in HCCL or other components",
        "allocation of 3 rows",
        "memory 3 of 5 failed over",
    ],
)
def test_other_words(text):
    assert not out_of_memory.is_oom(text)


@pytest.mark.parametrize(
    "text",
    [
        "Resource temporarily unavailable",
        "[Errno 11] Resource temporarily unavailable",
        "can't start new thread",
        "terminate called after throwing an instance of 'std::system_error'\n  what():  "
        "Resource temporarily unavailable",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "OpenBLAS blas_thread_init: pthread_create failed for thread 3 of 8: Resource temporarily unavailable",
    ],
)
def test_words_about_threads(text):
    told = out_of_memory.advice(RuntimeError(text), "train")
    assert told and not out_of_memory.is_oom(text)
    for limit in ("ulimit -u is ", "ulimit -v is ", "OMP_NUM_THREADS=1"):
        assert limit in told
    assert out_of_memory.no_thread("the shapes do not match") is None


def test_thread_that_finds_no_room():
    """Its stack is larger than what is left of the address space."""
    code = """if True:
        import resource, threading
        from npd_ascend import out_of_memory
        now = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20),) * 2)
        threading.stack_size(256 << 20)
        try:
            threading.Thread(target=print).start()
        except RuntimeError as e:
            print((now + (64 << 20)) // 1024, out_of_memory.advice(e, "annotate"))
    """
    limit, _, told = subprocess.check_output([sys.executable, "-c", code], text=True).partition(" ")
    assert told.startswith("no further thread or process could be started")
    assert re.search(rf"ulimit -v is {limit}\b", told), told


def test_exception_without_words():
    assert out_of_memory.is_oom(MemoryError())


def test_knobs_are_settings():
    """Every name in a remedy is one of the configuration."""
    from npd_ascend.config.schema import Config

    for room in ("rollout", "annotate", "train"):
        names = re.findall(r"\b([a-z]+)\.([a-z_]+)\b", out_of_memory.remedy(room))
        assert names
        for section, key in names:
            assert key in Config.model_fields[section].annotation.model_fields, (section, key)  # type: ignore[union-attr]


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group of this machine with so many bytes; skips where none can be made."""
    root = Path("/sys/fs/cgroup")
    parent, file = (root / "memory", "memory.limit_in_bytes") if (root / "memory").is_dir() else (root, "memory.max")
    group = parent / f"npd-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("needs the right to make a memory control group")
    try:
        yield group
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def test_kill_by_the_kernel_is_told_from_one_by_hand(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "time.sleep(0.3) if len(sys.argv) == 1 else pathlib.Path(sys.argv[1], 'cgroup.procs').write_text('0')\n"
        "x = []\n"
        "while len(sys.argv) > 1: x.append(bytearray(b'1') * (1 << 24))\n"
        "time.sleep(60)"
    )
    with memory_group(96 << 20) as group:
        worker = LocalWorker(0, [sys.executable, "-c", code, str(group)], os.environ, tmp_path / "log", queue.Queue())
        if "killed by" not in (reason := worker.exit_reason()):
            pytest.skip("the limit of the control group is not enforced here")
        assert reason == "killed by the kernel: out of memory" and out_of_memory.is_oom(reason)
    worker = LocalWorker(0, [sys.executable, "-c", code], os.environ, tmp_path / "log", queue.Queue())
    os.kill(worker.pid, 9)
    assert worker.exit_reason() == "killed by SIGKILL"
