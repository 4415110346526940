"""Atomic files and folders, identities, metrics, the run directory."""

import subprocess
import sys

import pytest

from npd_ascend.errors import UserError
from npd_ascend.store.atomic import atomic_file, atomic_folder, read_sealed, sweep, write_json
from npd_ascend.store.identity import digest, inside, model_fingerprint, prompt_id, sample_id, sample_seed
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter, read_metrics


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "x"
    with atomic_file(path) as f:
        f.write(b"one")
    with pytest.raises(RuntimeError), atomic_file(path) as f:
        f.write(b"two")
        raise RuntimeError
    assert path.read_bytes() == b"one" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_whole_or_as_before(tmp_path):
    path = tmp_path / "d"
    for text in ("one", "two"):
        with atomic_folder(path) as tmp:
            (tmp / "a").write_text(text)
    with pytest.raises(RuntimeError), atomic_folder(path) as tmp:
        (tmp / "a").write_text("three")
        raise RuntimeError
    assert (path / "a").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["d"]


def test_sweep_removes_what_killed_writers_left(tmp_path):
    (tmp_path / "g" / ".tmp-1-d").mkdir(parents=True)
    (tmp_path / "g" / ".tmp-1-d" / "f").touch()
    (tmp_path / ".tmp-2-f").touch()
    (tmp_path / "kept").touch()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["g", "kept"]


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert not (tmp_path / "x").exists()


def test_ids_are_stable():
    """Values are part of the format: seeds of old runs must stay what they were."""
    assert prompt_id([1, 2, 3], 0) == prompt_id([1, 2, 3], 0) != prompt_id([1, 2, 3], 1)
    assert prompt_id([12], 0) != prompt_id([1, 2], 0)
    ids = {sample_id(5, p, g) for p in range(50) for g in range(50)}
    assert len(ids) == 2500 and all(0 <= i < 1 << 63 for i in ids)
    assert 0 <= sample_seed(0, 7) < 1 << 32 and sample_seed(0, 7) != sample_seed(1, 7)
    assert digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1})
    assert sample_id(5, 0, 0) == 3468574194379000924


def test_model_fingerprint_follows_content(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        model_fingerprint(tmp_path)
    model, cache = tmp_path / "m", tmp_path / "cache.json"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"1")
    one = model_fingerprint(model, cache)
    assert model_fingerprint(model, cache) == one == model_fingerprint(model)
    assert len(read_sealed(cache)) == 2
    (model / "README.md").write_text("no part of the model")
    assert model_fingerprint(model, cache) == one
    (model / "model.safetensors").write_bytes(b"22")
    assert model_fingerprint(model, cache) != one


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_names_stay_inside(tmp_path, name):
    with pytest.raises(UserError, match="leads out"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"


def test_metrics(tmp_path):
    w = MetricsWriter(tmp_path / "m.jsonl")
    assert read_metrics(w.path) == []
    for step in range(4):
        w.log("train", step=step, loss=0.5)
    w.log("stage", seconds=1)
    with open(w.path, "a") as f:
        f.write('{"kind": "train", "st')  # a writer died here
    w.log("train", step=4)
    assert [r.get("step") for r in read_metrics(w.path)] == [0, 1, 2, 3, None, 4]
    w.drop(lambda row: row["kind"] == "train" and row["step"] > 2)
    assert [r.get("step") for r in read_metrics(w.path)] == [0, 1, 2, None]


def test_one_run_a_directory(tmp_path):
    run = RunDir(tmp_path / "r")
    run.lock()
    code = f"from npd_ascend.store.layout import RunDir; RunDir({str(tmp_path / 'r')!r}).lock()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode and "another run is at work" in other.stderr
    run.unlock()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_state(tmp_path):
    run = RunDir(tmp_path)
    run.write_state(status="running")
    run.write_state(last_step="x")
    assert run.read_state()["status"] == "running" and run.read_state()["last_step"] == "x"
    run.state.write_text("{")
    assert run.read_state() == {}
