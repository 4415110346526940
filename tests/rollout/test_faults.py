"""Engines that hang, die or run out of disk in the middle of a shard."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from npd_ascend.errors import CorruptSnapshot, UserError  # noqa: E402
from npd_ascend.rollout import stage  # noqa: E402
from npd_ascend.rollout.engine import Engine, set_environment  # noqa: E402
from npd_ascend.rollout.pool import RolloutPool  # noqa: E402
from npd_ascend.store.atomic import write_sealed  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.store.identity import file_seals  # noqa: E402
from npd_ascend.store.journal import Journal  # noqa: E402
from npd_ascend.workers import session  # noqa: E402

set_environment("cpu")
PROMPTS, PATHS = 60, 5


@pytest.fixture(scope="module")
def prompts(tmp_path_factory, make_prompts) -> Path:
    return make_prompts(tmp_path_factory.mktemp("data") / "prompts", PROMPTS, PROMPTS)


@pytest.fixture(scope="module")
def engine(checkpoints, prompts, make_job):
    engine = Engine(make_job(Path("unused"), prompts, checkpoints[0], samples=PATHS - 1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory, checkpoints, prompts, make_job, engine):
    job = make_job(tmp_path_factory.mktemp("plain") / "out", prompts, checkpoints[0], samples=PATHS - 1)
    stage.work(job, engine, lambda **counts: None)
    return Dataset.open(job.out, "rollouts").read_all()


class Saboteur(threading.Thread):
    """Sends a signal to the worker as soon as the journal holds more answers than at the last one."""

    def __init__(self, pool: RolloutPool, out: Path, signals: list[int]):
        super().__init__(daemon=True)
        self.pool, self.out, self.signals = pool, out, signals
        self.standing: list[set[int]] = []  # rows in the journal at each signal

    def run(self) -> None:
        for number in self.signals:
            before, hit = len(self.standing[-1]) if self.standing else 0, False
            while not hit:
                for path in self.out.glob("*.journal"):
                    rows = {r["row"] for r in Journal(path).replay()}
                    worker = self.pool._workers.get(0)
                    if before < len(rows) < PROMPTS * PATHS and worker is not None and worker.settled:
                        os.kill(worker._popen.pid, number)
                        self.standing.append(rows)
                        hit = True
                time.sleep(0.005)


def test_hanging_and_dying_engines_lose_and_repeat_nothing(tmp_path, prompts, make_job, checkpoints, plain, capfd):
    """SIGSTOP, then SIGKILL of its successor, each in the middle of the one shard; then one that may not fail."""
    made: list[int] = []

    class Counting(session.Tally):
        def __call__(self, samples, tokens, have, worked):
            made.append(samples)
            super().__call__(samples, tokens, have, worked)

    job = make_job(
        tmp_path / "out", prompts, checkpoints[0], samples=PATHS - 1, hang_seconds=2.0, max_failures=2, max_num_seqs=8
    )
    with pytest.MonkeyPatch.context() as m, RolloutPool(Path(sys.executable), 1, tmp_path / "logs") as pool:
        m.setattr(session, "Tally", Counting)
        saboteur = Saboteur(pool, job.out, [signal.SIGSTOP, signal.SIGKILL])
        saboteur.start()
        pool.run(job)
        saboteur.join(5)
        assert not saboteur.is_alive() and saboteur.standing[0] < saboteur.standing[1]
        table = Dataset.open(job.out, "rollouts").read_all()
        assert table.drop_columns(["logprobs"]) == plain.drop_columns(["logprobs"])
        # What stood in the journal was not generated again: at most what was reported twice is nothing.
        assert sum(made) <= PROMPTS * PATHS
        told = capfd.readouterr().err
        assert "showed no progress for 2 s (rollout.hang_seconds)" in told and "killed by SIGKILL" in told
        assert not list(job.out.glob("*.journal"))

        strict = make_job(
            tmp_path / "strict",
            prompts,
            checkpoints[0],
            samples=PATHS - 1,
            max_failures=0,
            max_num_seqs=8,
            generation=1,
        )
        saboteur = Saboteur(pool, strict.out, [signal.SIGKILL])
        saboteur.start()
        with pytest.raises(UserError, match=r"killed by SIGKILL.*max_failures is 0; see .*rollout-0\.log") as e:
            pool.run(strict)
        assert "\n" not in str(e.value) and e.value.exit_code == 2
        (journal,) = strict.out.glob("*.journal")
        assert {r["row"] for r in Journal(journal).replay()} >= saboteur.standing[0]


def test_full_disk_in_the_middle_of_a_shard(disk, prompts, make_job, checkpoints, engine, plain):
    job = make_job(disk.root / "out", prompts, checkpoints[0], samples=PATHS - 1)
    for pages in (2, 20):
        disk.leave(pages)
        with pytest.raises(UserError, match="No space left on device; make room there") as e:
            stage.work(job, engine, lambda **counts: None)
        assert "\n" not in str(e.value) and not list(disk.root.rglob(".tmp-*"))
        assert not list(job.out.glob("shard-*.parquet")) and not (job.out / "manifest.json").exists()
        while engine._engine.has_unfinished_requests():
            engine._engine.step()
    stood = sum(len(Journal(p).replay()) for p in job.out.glob("*.journal"))
    assert 0 < stood < PROMPTS * PATHS
    disk.free()
    made: list[int] = []
    stage.work(job, engine, lambda samples, **counts: made.append(samples))
    assert sum(made) == PROMPTS * PATHS - stood
    table = Dataset.open(job.out, "rollouts").read_all()
    assert table.drop_columns(["logprobs"]) == plain.drop_columns(["logprobs"])


def test_damaged_snapshot_is_not_loaded(tmp_path, prompts, make_job, make_checkpoint, engine):
    model = make_checkpoint(tmp_path / "next", 5)
    write_sealed(tmp_path / "next.json", {"files": file_seals(model)})
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 16
    file.write_bytes(data)
    job = make_job(tmp_path / "out", prompts, model, samples=PATHS - 1)
    with pytest.raises(CorruptSnapshot, match="model.safetensors is damaged"):
        stage.work(job, engine, lambda **counts: None)
    with RolloutPool(Path(sys.executable), 1, tmp_path / "logs") as pool, pytest.raises(CorruptSnapshot) as e:
        pool.run(job)
    assert e.value.dataset == str(model)
