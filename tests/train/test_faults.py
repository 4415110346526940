"""Training that runs into something: no room on the disk, no memory, numbers that are none. With the real engine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("mindspore")

from npd_ascend.errors import CorruptSnapshot, UserError, of_the_disk  # noqa: E402
from npd_ascend.store.identity import file_seals  # noqa: E402
from npd_ascend.train.stage import run  # noqa: E402
from npd_ascend.workers.jobfile import write_job  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]


def pages_of(folder):
    return sum(-(-f.stat().st_size // 4096) for f in folder.iterdir())


def tensors(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


@pytest.fixture
def train(kept):
    """Runs a job with graphs that are compiled already."""
    return lambda job: run(job, kept)


def test_full_disk_ends_as_if_it_had_not_been(world, disk, rows_of, train):
    whole = world.job("whole")
    train(whole)
    short = whole.model_copy(update={n: disk.root / n for n in ("checkpoints", "out")})
    job = short.model_copy(update={"metrics": disk.root / "metrics.jsonl"})
    checkpoint, snapshot = pages_of(whole.checkpoints / "step-00000002"), pages_of(whole.out / "next")
    # The first checkpoint does not fit; the second does not; the snapshot does not.
    for pages, kept in ((20, 0), (checkpoint + 20, 1), (checkpoint + snapshot - 3, 2)):
        disk.leave(pages)
        with pytest.raises(OSError) as e:
            train(job)
        assert "disk is full" in (of_the_disk(e.value) or "")
        assert len(list(job.checkpoints.glob("step-*"))) == kept and not list(disk.root.rglob(".tmp-*"))
        assert not (job.out / "done.json").exists() and not job.out.joinpath("next").exists()
    disk.free()
    train(job)
    assert tensors(job.out / "next") == tensors(whole.out / "next")
    assert [r["loss"] for r in rows_of(job, "train")] == [r["loss"] for r in rows_of(whole, "train")]


def test_nan_stops_at_the_same_batch_again_and_other_settings_begin_anew(world, rows_of, train):
    """A rate that spoils the weights in the last step: no checkpoint of them stays, and the samples are named."""
    good = world.job("run", end_progress=1.0, fingerprint="good")
    mad = {"epochs": 1.0, "lr": 3e38, "min_lr": 3e38, "warmup": 0.0, "checkpoint_every": 1, "weight_decay": 0.9}
    job = world.job("run", settings=mad, end_progress=1.0, fingerprint="mad")
    told = []
    for _ in range(2):
        with pytest.raises(UserError, match="NaN or infinite at step") as e:
            train(job)
        told.append(str(e.value))
        (kept,) = job.out.glob("not-finite-step-*.json")
        assert str(kept) in told[-1] and "--redo" in told[-1]
        found = json.loads(kept.read_text())
        assert found["sample_ids"] and set(found["sample_ids"]) <= set(world.ids.tolist())
        assert f"at step {found['step']} " in told[-1]
        assert not (job.out / "done.json").exists()
        for file in job.checkpoints.rglob("*.safetensors"):
            assert all(np.isfinite(t).all() for t in load_file(file).values())
    assert told[0] == told[1]
    train(good)
    assert (good.out / "done.json").exists() and not list(good.out.glob("not-finite-*"))
    whole = world.job("whole", end_progress=1.0, fingerprint="good")
    train(whole)
    assert tensors(good.out / "next") == tensors(whole.out / "next")
    assert [r["loss"] for r in rows_of(good, "train")] == [r["loss"] for r in rows_of(whole, "train")]


def test_poisoned_snapshot(world, train):
    """Finite, so it can be loaded, but its logits are not; and one that was changed after it was written."""
    job = world.job()
    file = job.student / "model.safetensors"
    sound = file.read_bytes()
    weights = load_file(file)
    for name in ("model.norm.weight", "lm_head.weight"):
        weights[name] = weights[name] * np.float32(1e25)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lag is NaN or infinite at step 0") as e:
        train(job)
    assert str(job.snapshot) in str(e.value)
    file.write_bytes(sound)
    from npd_ascend.store.atomic import write_sealed

    write_sealed(job.student.with_name("student.json"), {"files": file_seals(job.student)})
    flipped = bytearray(sound)
    flipped[-3] ^= 2
    file.write_bytes(flipped)
    with pytest.raises(CorruptSnapshot, match=r"student: model.safetensors is damaged .* rebuilds it"):
        train(job)


def test_out_of_memory_names_the_knobs(world, starved):
    """Attention over 1,024 rows of 1,024 tokens takes more than a GiB."""
    job = world.job(settings={"epochs": 2.0, "global_batch": 1024, "micro_batch": 1024}).model_copy(
        update={"row_length": 1024}
    )
    write_job(world.root / "job.json", "train", job)
    done = starved(world.root / "job.json", 1 << 30)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: train: out of memory") and "train.micro_batch" in last, last
    assert not (job.out / "done.json").exists() and not list(world.root.rglob(".tmp-*"))
