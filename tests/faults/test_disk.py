"""Disks that are full, read-only or faulty, and clocks that go back: one clear line, nothing half-written, and the same
command afterwards gives what an undisturbed one gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from npd_ascend.config.schema import Section
from npd_ascend.data.stage import run as prepare
from npd_ascend.errors import CorruptShard, UserError, of_the_disk
from npd_ascend.evaluate.stage import run as evaluate
from npd_ascend.pack.stage import run as pack
from npd_ascend.report.build import build
from npd_ascend.report.collect import collect
from npd_ascend.select.stage import run as select
from npd_ascend.store.atomic import atomic_folder, write_json
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.journal import Journal
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter, read_metrics
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk
from npd_ascend.workers.jobfile import write_job


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


STAGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Section]]] = {
    "prepare": (prepare, lambda k: k.prepare_job()),
    "select": (select, lambda k: k.select_job()),
    "pack": (pack, lambda k: k.pack_job()),
    "evaluate": (evaluate, lambda k: k.evaluate_job()),
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("fresh", [True, False])
def test_disk_full_at_any_write_of_a_stage(kit, disk, name, fresh):
    """With 0, 1, 2, ... pages left: each try fails clean until there is room, be it fresh or going on from the last."""
    run, make = STAGES[name]
    kit.data()
    job = make(kit)
    run(job)
    whole = content(job.out) if job.out.is_dir() else {"": job.out.read_bytes()}
    job = job.model_copy(update={"out": disk.root / "out"})
    failures = 0
    for pages in range(60):
        if fresh:
            shutil.rmtree(job.out, ignore_errors=True)
        disk.leave(pages)
        try:
            run(job)
            break
        except OSError as e:
            assert "disk is full" in (of_the_disk(e) or "")
            failures += 1
        left = content(disk.root)
        assert not [f for f in left if ".tmp-" in f]
        for file, data in left.items():
            if file != "ballast":  # what is there is whole, and the manifest comes last
                assert data == whole[file.removeprefix("out").lstrip("/")] and "manifest" not in file, file
    assert failures >= (1 if name == "evaluate" else 5 if fresh else 3)
    assert (content(job.out) if job.out.is_dir() else {"": job.out.read_bytes()}) == whole


@pytest.mark.parametrize("name", ["select", "pack"])
def test_the_process_of_a_stage_says_it(kit, disk, name):
    kit.data()
    job = STAGES[name][1](kit).model_copy(update={"out": disk.root / "out"})
    write_job(kit.root / "job.json", name, job)
    command = [sys.executable, "-m", "npd_ascend.workers.process", str(kit.root / "job.json")]
    disk.leave(1)
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 2 and "disk is full" in full.stderr.strip().splitlines()[-1]
    disk.free()
    assert subprocess.run(command, capture_output=True).returncode == 0


# The disk fills up after the run has looked how much room there is.
_LATER = """import npd_ascend.pipeline.executor as executor
from npd_ascend.cli import main

executor.check_room = lambda config: None
main()
"""


@pytest.mark.parametrize("pages", [0, 2, 5])
def test_a_run_says_it(kit, disk, pages):
    """The executor itself, wherever its own files or those of its first stage do not fit."""
    kit.set("run.dir", str(disk.root / "run"))
    kit.file.write_text(yaml.safe_dump(kit.tree))
    command = [sys.executable, "-c", _LATER, "run", str(kit.file), "--stage", "prepare"]
    disk.leave(pages)
    full = subprocess.run(command, capture_output=True, text=True)
    said = full.stderr.strip().splitlines()
    assert full.returncode == 2 and said[-1].startswith("error: ") and "disk" in said[-1] and "full" in said[-1]
    assert "Traceback" not in full.stderr and not list(disk.root.rglob(".tmp-*"))
    disk.free()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert Dataset.open(disk.root / "run" / "prompts" / "train", "prompts").rows == 8


def test_a_run_that_cannot_fit_does_not_begin(kit, disk):
    kit.set("run.dir", str(disk.root / "run"))
    kit.file.write_text(yaml.safe_dump(kit.tree))
    disk.leave(5)
    command = [sys.executable, "-m", "npd_ascend.cli", "run", str(kit.file)]
    full = subprocess.run(command, capture_output=True, text=True)
    (said,) = full.stderr.strip().splitlines()
    assert full.returncode == 2 and said.startswith("error: disk: the run needs about ")
    assert "20.5 kB are free" in said and "train.keep_checkpoints" in said and str(disk.root) in said
    assert not (disk.root / "run").exists()


def test_writers_on_a_full_disk(disk):
    root = disk.root
    journal, metrics, run = Journal(root / "j"), MetricsWriter(root / "metrics.jsonl"), RunDir(root)
    journal.append({"n": 0})
    metrics.log("train", step=0)
    run.write_state(status="running")
    topk, codec = Dataset(root / "topk", "topk", "f"), TopKFormat(4, 1000)
    sample = TopK(np.zeros((900, 4), np.int32), np.zeros((900, 4)), np.ones(900), np.zeros(900), np.zeros(900))
    disk.leave(0)
    long = "x" * 9000
    for write in (lambda: journal.append({"n": 1, "text": long}), lambda: metrics.log("train", step=1, x=long),
                  lambda: write_json(root / "run.json", {"a": long}), lambda: write_topk(topk, 0, codec, [sample]),
                  lambda: _folder(root / "f")):  # fmt: skip
        with pytest.raises(OSError) as e:
            write()
        assert "disk is full" in (of_the_disk(e.value) or "")
    assert run.read_state()["status"] == "running" and not (root / "f").exists() and topk.missing(1) == [0]
    disk.free()
    journal.append({"n": 2})
    metrics.log("train", step=2)
    write_topk(topk, 0, codec, [sample])
    assert Journal(root / "j").replay() == [{"n": 0}, {"n": 2}]
    assert [r["step"] for r in read_metrics(root / "metrics.jsonl")] == [0, 2] and topk.missing(1) == []
    assert not list(root.rglob(".tmp-*"))


def _folder(path: Path) -> None:
    with atomic_folder(path) as tmp:
        (tmp / "big").write_bytes(b"x" * 9000)


def test_report_on_a_full_and_on_a_read_only_disk(kit, disk):
    run = RunDir(disk.root / "run")
    MetricsWriter(run.metrics).log("train", step=1, loss=0.5, progress=0.1, generation=0)
    before = build(run.root).read_bytes()
    command = [sys.executable, "-m", "npd_ascend.cli", "report", str(run.root)]
    disk.leave(0)
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 2 and "disk is full" in full.stderr and "Traceback" not in full.stderr
    disk.free()
    disk.read_only(True)
    closed = subprocess.run(command, capture_output=True, text=True)
    disk.read_only(False)
    assert closed.returncode == 2 and "cannot write" in closed.stderr and "Traceback" not in closed.stderr
    assert run.report.read_bytes() == before


def test_run_in_a_read_only_directory(kit, disk):
    kit.set("run.dir", str(disk.root / "run"))
    kit.file.write_text(yaml.safe_dump(kit.tree))
    disk.read_only(True)
    command = [sys.executable, "-m", "npd_ascend.cli", "run", str(kit.file)]
    done = subprocess.run(command, capture_output=True, text=True)
    disk.read_only(False)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(said) == 1 and "choose another run.dir" in said[0]


# ---- damage


DAMAGE: dict[str, Callable[[bytearray], bytes | bytearray]] = {
    "empty": lambda d: b"", "half": lambda d: d[: len(d) // 2], "one byte short": lambda d: d[:-1],
    "first bit": lambda d: bytes([d[0] ^ 1]) + d[1:], "last bit": lambda d: d[:-1] + bytes([d[-1] ^ 1]),
    **{f"bit at {x}": (lambda d, x=x: d[: int(x * len(d))] + bytes([d[int(x * len(d))] ^ 4]) + d[int(x * len(d)) + 1 :])
       for x in (0.1, 0.3, 0.5, 0.7, 0.9)}, "zeros": lambda d: bytes(len(d))}  # fmt: skip


def mended(run: Callable[[Any], None], job: Any, kind: str) -> int:
    """Does what the executor does: the stage again, and a shard that is found damaged taken back. Returns rounds."""
    for turn in range(5):
        run(job)
        d = Dataset(job.out, kind, job.fingerprint)
        try:
            d.read_all()
            return turn
        except CorruptShard as e:
            d.discard(e.index)
    raise AssertionError("it stays damaged")


def values(folder: Path) -> dict[str, Any]:
    """Content of all files; JSON files as values, since a lost line feed at the end is no damage."""
    return {f: json.loads(d) if f.endswith(".json") else d for f, d in content(folder).items()}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("name", "kind"), [("select", "selection"), ("pack", "packs"), ("prepare", "prompts")])
def test_damage_is_mended(kit, name, kind, damage):
    """Any file of a dataset, manifest, shard, or record before there is a manifest, is made again as it was."""
    run, make = STAGES[name]
    kit.data()
    job = make(kit)
    run(job)
    whole, original = content(job.out), values(job.out)
    for file in ("manifest.json", "shard-00000.json", "shard-00001.parquet"):
        path = job.out / file
        path.write_bytes(DAMAGE[damage](bytearray(whole[file])))
        if file == "shard-00000.json":
            (job.out / "manifest.json").unlink()
        if path.read_bytes() != whole[file]:
            mended(run, job, kind)
        assert values(job.out) == original, file


def test_a_finished_dataset_is_read_without_its_records(kit):
    kit.data()
    job = kit.select_job()
    select(job)
    whole = Dataset.open(job.out, "selection").read_all()
    for record in job.out.glob("shard-*.json"):
        record.write_bytes(b"")
    select(job)  # nothing to do
    assert Dataset.open(job.out, "selection").read_all().equals(whole)
    assert all(r.stat().st_size == 0 for r in job.out.glob("shard-*.json"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_state_and_metrics(tmp_path, damage):
    """run.json is rebuilt; of metrics.jsonl only rows that are touched are lost."""
    run = RunDir(tmp_path)
    run.write_state(status="running", started=1.0)
    for step in range(20):
        MetricsWriter(run.metrics).log("train", step=step)
    rows = read_metrics(run.metrics)
    for path in (run.state, run.metrics):
        path.write_bytes(DAMAGE[damage](bytearray(path.read_bytes())))
    run.write_state(status="finished")
    assert run.read_state()["status"] == "finished"
    MetricsWriter(run.metrics).log("train", step=20)
    kept = read_metrics(run.metrics)
    assert kept[-1]["step"] == 20
    lost = sum(r not in kept for r in rows)
    assert lost <= {"empty": 20, "half": 11, "zeros": 20}.get(damage, 2)


# ---- clocks


@pytest.mark.parametrize("leap", [-3600, 10 * 365 * 86400], ids=["back by hours", "on by years"])
def test_clock_that_leaps(kit, monkeypatch, leap):
    """At every look. Times are only shown, never relied upon: results are the same, durations not negative."""
    kit.data()
    select(kit.select_job())
    whole = content(kit.at("selected"))
    shutil.rmtree(kit.at("selected"))
    looks = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 2e9 + leap * next(looks))
    select(kit.select_job())
    assert content(kit.at("selected")) == whole
    run = RunDir(kit.run)
    writer = MetricsWriter(run.metrics)
    for _ in range(3):
        writer.log("stage", stage="train", generation=0, seconds=5.0, busy=4.0, tokens=10, samples=1)
    run.write_state(status="finished", started=2e9, ended=2e9 + 100 * leap)
    assert collect(run.root).wall_seconds() == pytest.approx(15.0)
    assert "</html>" in build(run.root).read_text()


def test_lock_outlives_the_clock(tmp_path, monkeypatch):
    first, second = RunDir(tmp_path), RunDir(tmp_path)
    first.lock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(UserError, match="another run is at work"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()
