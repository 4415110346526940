"""Stage processes: exit codes, one clear line, no orphan."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.config.schema import SelectConfig
from npd_ascend.out_of_memory import resident_bytes
from npd_ascend.pipeline.child import _advice, write_job
from npd_ascend.pipeline.processes import Child, child_environment
from npd_ascend.progress import ProgressTail
from npd_ascend.select.job import SelectJob
from npd_ascend.store.dataset import Dataset


def rollouts(folder: Path, n: int = 4) -> Dataset:
    d = Dataset(folder, "rollouts", "r")
    d.write_table(0, pa.table({
        "sample_id": np.arange(n), "prompt_index": np.arange(n), "path": np.zeros(n, np.int8),
        "response_ids": [[1, 2]] * n, "logprobs": [[-1.0, -2.0]] * n,
        "label_ids": pa.array([None] * n, pa.list_(pa.int32())), "finish_reason": ["stop"] * n}))  # fmt: skip
    d.finish(1)
    return d


def run_job(tmp_path, job):
    write_job(tmp_path / "job.json", "select", job)
    env = child_environment(Path(sys.executable), tmp_path / "progress.jsonl")
    done = subprocess.run([sys.executable, "-m", "npd_ascend.pipeline.child", str(tmp_path / "job.json")], env=env,
                          capture_output=True, text=True)  # fmt: skip
    return done, ProgressTail(tmp_path / "progress.jsonl").poll()


@pytest.fixture
def job(tmp_path):
    rollouts(tmp_path / "rollouts")
    return SelectJob(out=tmp_path / "selection", fingerprint="s", rollouts=tmp_path / "rollouts",
                     settings=SelectConfig(filter="none"))  # fmt: skip


def test_success(tmp_path, job):
    done, events = run_job(tmp_path, job)
    assert done.returncode == 0, done.stderr
    assert Dataset.open(job.out, "selection").rows == 4
    assert events[-1]["event"] == "end" and events[-1]["done"] == 4


def test_user_error_is_one_line_and_code_2(tmp_path, job):
    done, events = run_job(tmp_path, job.model_copy(update={"settings": SelectConfig(filter="delta_ifdd")}))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "delta_ifd" in last and "Traceback" not in done.stderr
    assert [e["event"] for e in events if e["event"] == "error"] == ["error"]


def test_damaged_shard_is_code_3(tmp_path, job):
    path = Dataset.open(job.rollouts, "rollouts").path(0)
    data = bytearray(path.read_bytes())
    data[-30] ^= 1  # in the footer, which every reader checks
    path.write_bytes(bytes(data))
    done, events = run_job(tmp_path, job)
    assert done.returncode == 3
    (event,) = [e for e in events if e["event"] == "corrupt"]
    assert (Path(event["dataset"]), event["index"]) == (job.rollouts, 0)


@pytest.mark.parametrize(("fault", "words"), [
    (OSError(28, "No space left on device", "x/y"), "disk is full"),
    (OSError(30, "Read-only file system", "x"), "cannot write"),
    (MemoryError(), "train.micro_batch"),
    (RuntimeError("Allocate memory failed: Memory not enough"), "train.micro_batch"),
])  # fmt: skip
def test_faults_of_the_surroundings_have_a_remedy(fault, words):
    assert words in _advice(fault, "train")
    assert _advice(ValueError("bug"), "train") is None


def test_stop_ends_the_whole_group(tmp_path):
    """A child that ignores SIGTERM, and its own child, are gone after stop()."""
    code = ("import signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(p.pid, flush=True); time.sleep(60)")  # fmt: skip
    child = Child("x", [sys.executable, "-c", code], dict(os.environ), tmp_path / "log")
    deadline = time.monotonic() + 120
    while not child.log_tail() and time.monotonic() < deadline:
        time.sleep(0.05)
    grandchild = int(child.log_tail())
    import npd_ascend.pipeline.processes as processes

    grace, processes._GRACE_S = processes._GRACE_S, 0.2
    try:
        child.stop()
    finally:
        processes._GRACE_S = grace
    deadline = time.monotonic() + 60
    while alive(grandchild) and time.monotonic() < deadline:  # not ours to wait for: its signal may still be on the way
        time.sleep(0.02)
    assert child.poll() == -signal.SIGKILL and not alive(grandchild)


def test_child_dies_with_its_parent(tmp_path):
    """Even when the parent is killed with SIGKILL."""
    code = (
        "import os, sys; from pathlib import Path; from npd_ascend.pipeline.processes import Child\n"
        f"c = Child('x', [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'],"
        f" dict(os.environ), Path({str(tmp_path / 'log')!r}))\n"
        "import time\nwhile not c.log_tail(): time.sleep(0.05)\nprint(c.log_tail(), flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_memory_counts_what_a_process_has_started():
    """A process of 40 MB that starts one of 60."""
    child = "x = b'x' * 60_000_000; print(1, flush=True); input()"
    code = f"import subprocess, sys; x = b'x' * 40_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert 100e6 < resident_bytes(process.pid) < 300e6
        finally:
            process.kill()
    assert resident_bytes(2**30) == 0
