"""The pool with real worker processes on jobs that need no engine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.progress import Meter
from npd_ascend.rollout import stage
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.store.dataset import Dataset
from npd_ascend.workers.failures import PoolClosed

PYTHON = Path(sys.executable)


def pids(pool: RolloutPool) -> list[int]:
    return [w._popen.pid for w in pool._workers.values()]


def gone(pid: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def pool(tmp_path):
    with RolloutPool(PYTHON, 2, tmp_path / "logs") as pool:
        yield pool


def test_references_become_rollouts(tmp_path, make_prompts, make_job, pool):
    prompts = make_prompts(tmp_path / "p", 20, 4)
    meters: list[Meter] = []

    def meter(*args, **kwargs):
        meters.append(Meter(*args, **kwargs))
        return meters[-1]

    pool._meter = meter
    job = make_job(tmp_path / "out", prompts, source="reference")
    pool.run(job)
    stage.run(alone := make_job(tmp_path / "alone", prompts, source="reference"))
    table = Dataset.open(job.out, "rollouts").read_all()
    assert table == Dataset.open(alone.out, "rollouts").read_all()
    for row, prompt in zip(table.to_pylist(), Dataset.open(prompts, "prompts").read_all().to_pylist(), strict=True):
        assert row["response_ids"] == prompt["reference_ids"] and row["label_ids"] == prompt["label_ids"]
        assert row["logprobs"] is None and row["finish_reason"] == "reference" and row["path"] == 0
    assert (meters[0].total, meters[0].done) == (20, 20)
    started = pids(pool)
    pool.run(job)  # complete: nobody is asked
    pool.run(make_job(tmp_path / "again", prompts, source="reference"))
    assert pids(pool) == started


def test_dead_and_hanging_workers_are_replaced(tmp_path, make_prompts, make_job, pool, capfd):
    prompts = make_prompts(tmp_path / "p", 12, 2)
    pool.start()
    first = pids(pool)
    os.kill(first[0], signal.SIGKILL)
    assert gone(first[0])
    pool.run(make_job(tmp_path / "a", prompts, source="reference"))
    assert Dataset.open(tmp_path / "a", "rollouts").rows == 12
    second = pids(pool)
    for pid in second:
        os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    pool.run(make_job(tmp_path / "b", prompts, source="reference", hang_seconds=2.0))
    assert 2.0 <= time.monotonic() - start < 300  # and not the quarter of an hour before the first step
    assert Dataset.open(tmp_path / "b", "rollouts").rows == 12
    assert all(gone(pid) for pid in second)
    assert "no progress for 2 s" in capfd.readouterr().err


def test_too_many_failures_end_with_the_log_named(tmp_path, make_prompts, make_job):
    with RolloutPool(Path("/bin/false"), 1, tmp_path / "logs") as pool:
        job = make_job(tmp_path / "a", make_prompts(tmp_path / "p", 4, 2), source="reference", max_failures=2)
        with pytest.raises(UserError, match=r"failed .*exit code 1.*failure 3 .*rollout-0\.log") as e:
            pool.run(job)
    assert "\n" not in str(e.value)


def test_interpreter_that_is_not_there(tmp_path, make_prompts, make_job):
    with RolloutPool(tmp_path / "python", 1, tmp_path / "logs") as pool, pytest.raises(UserError, match="setup_env"):
        pool.run(make_job(tmp_path / "a", make_prompts(tmp_path / "p", 4, 2), source="reference"))


def test_user_errors_come_through_and_the_pool_stays_usable(tmp_path, make_prompts, make_job, pool):
    bad = make_prompts(tmp_path / "bad", 4, 2, references=False)
    with pytest.raises(UserError, match="prompt [02] has no reference answer"):
        pool.run(make_job(tmp_path / "a", bad, source="reference"))
    with pytest.raises(UserError, match="no finished prompts"):
        pool.run(make_job(tmp_path / "a", tmp_path / "nowhere", source="reference"))
    good = make_prompts(tmp_path / "good", 4, 2)
    pool.run(make_job(tmp_path / "b", good, source="reference"))
    assert Dataset.open(tmp_path / "b", "rollouts").rows == 4


def test_full_disk_stops_with_one_line_and_nothing_is_lost(tmp_path, make_prompts, make_job, monkeypatch):
    """``/dev/full`` stands in for the journal's disk: every write to it fails as on a full one."""
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 4, 2), source="reference")

    def full(*args, **kwargs):
        with open("/dev/full", "wb", buffering=0) as f:
            f.write(b"x")

    with monkeypatch.context() as m, pytest.raises(UserError, match="No space left on device; make room"):
        m.setattr(Dataset, "write_table", full)
        stage.work(job, None, lambda **counts: None)
    stage.work(job, None, lambda **counts: None)
    assert Dataset.open(job.out, "rollouts").rows == 4


def test_folder_that_cannot_be_written(tmp_path, make_prompts, make_job, pool):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pool.run(make_job(tmp_path / "file" / "out", make_prompts(tmp_path / "p", 4, 2), source="reference"))


def test_damaged_prompts_come_through_with_their_place(tmp_path, make_prompts, make_job, pool):
    prompts = make_prompts(tmp_path / "p", 12, 4)
    path = prompts / "shard-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShard) as e:
        pool.run(make_job(tmp_path / "a", prompts, source="reference"))
    assert (e.value.dataset, e.value.index) == (str(prompts), 2)


def test_close_ends_a_running_job_and_leaves_no_process(tmp_path, make_prompts, make_job):
    pool = RolloutPool(PYTHON, 2, tmp_path / "logs")
    pool.start()
    started = pids(pool)
    for pid in started:
        os.kill(pid, signal.SIGSTOP)  # keeps the job running
    threading.Timer(1.0, pool.close).start()
    with pytest.raises(PoolClosed):
        pool.run(make_job(tmp_path / "a", make_prompts(tmp_path / "p", 4, 2), source="reference"))
    assert all(gone(pid) for pid in started)
    pool.close()


def test_each_ascend_worker_sees_its_own_devices(tmp_path, monkeypatch):
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    pool = RolloutPool(PYTHON, 4, tmp_path, target="ascend", tensor_parallel=2)
    assert [pool._environment(i)["ASCEND_RT_VISIBLE_DEVICES"] for i in range(4)] == ["0,1", "2,3", "4,5", "6,7"]
    pool = RolloutPool(PYTHON, 2, tmp_path, target="ascend", env={"ASCEND_RT_VISIBLE_DEVICES": "5,7"})
    assert [pool._environment(i)["ASCEND_RT_VISIBLE_DEVICES"] for i in range(2)] == ["5", "7"]
    pool = RolloutPool(PYTHON, 3, tmp_path, target="ascend", env={"ASCEND_RT_VISIBLE_DEVICES": "5,7"})
    with pytest.raises(UserError, match="2 are visible"):
        pool._environment(2)
