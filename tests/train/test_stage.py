"""Whole generations: what is left behind, and resume to the bit."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.train import generation  # noqa: E402
from npd_ascend.train.schedule import learning_rate  # noqa: E402
from npd_ascend.train.stage import run  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]


class Killed(BaseException):
    pass


@pytest.fixture
def train(kept):
    """Runs a job with graphs that are compiled already."""
    return lambda job: run(job, kept)


@pytest.fixture
def killed_after(monkeypatch, train):
    """Runs a job until the given step is done and logged, its checkpoint not yet written."""

    def go(job, step):
        real = generation.Generation._after

        def stop(self, place):
            if self.state.step == step:
                raise Killed
            real(self, place)

        with monkeypatch.context() as m:
            m.setattr(generation.Generation, "_after", stop)
            with pytest.raises(Killed):
                train(job)

    return go


def steps(rows):
    return [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in rows]


def done(job):
    return json.loads((job.out / "done.json").read_text())


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_generation(world, rows_of, tensors_of):
    job = world.job()
    run(job)
    rows, lag = rows_of(job, "train"), rows_of(job, "lag")
    assert [r["step"] for r in rows] == [1, 2, 3, 4] and [r["progress"] for r in rows] == [0.5, 1, 1.5, 2]
    assert [r["lr"] for r in rows] == [learning_rate(job.settings, p) for p in (0.5, 1, 1.5, 2)]
    for r in rows:
        assert r["loss"] == pytest.approx(0.1 * r["ce"] + 0.9 * r["kd"], rel=1e-5)
    kept = [len(world.responses[s]) for s in np.flatnonzero(world.keep)]
    assert sum(r["tokens"] for r in rows) == 2 * sum(kept)
    assert (lag[0]["forward"], lag[0]["reverse"], lag[0]["progress"]) == (0.0, 0.0, 0.0)
    assert [r["step"] for r in lag] == [0, 3, 4] and lag[-1]["forward"] > 0
    d = done(job)
    assert (d["step"], d["progress"], d["reason"], d["snapshot_progress"]) == (4, 2, "planned", 2)
    assert d["fingerprint"] == job.fingerprint
    moved = tensors_of(job.out / "next")
    start = tensors_of(job.student)
    assert moved.keys() == start.keys() and all((moved[k] != start[k]).any() for k in moved)
    written = (job.out / "done.json").stat().st_mtime_ns
    run(job)  # complete: returns at once
    assert (job.out / "done.json").stat().st_mtime_ns == written and len(rows_of(job, "train")) == 4


@pytest.mark.parametrize("tied", [False, True])
def test_a_padded_student_trains_as_one_without_padding(world, train, rows_of, tensors_of, loud_padding, tied):
    """Loss, lag and weights are those of the vocabulary; the padding's rows get no gradient, so without weight decay
    they stay, to the bit."""
    from safetensors.numpy import save_file

    wide = loud_padding(world.student("wide", vocab_size=64, tie_word_embeddings=tied), 53)
    narrow = world.student("narrow", tie_word_embeddings=tied)
    cut = {
        k: v[:53] if k in ("lm_head.weight", "model.embed_tokens.weight") else v for k, v in tensors_of(wide).items()
    }
    save_file(cut, narrow / "model.safetensors")
    jobs = [world.job(s.name, student=s, settings={"weight_decay": 0.0}) for s in (wide, narrow)]
    for job in jobs:
        train(job)
    for kind, keys in (("train", ("loss", "ce", "kd", "grad_norm")), ("lag", ("forward", "reverse"))):
        for mine, other in zip(*(rows_of(job, kind) for job in jobs), strict=True):
            assert [mine[k] for k in keys] == pytest.approx([other[k] for k in keys], rel=1e-4)
    a, b, start = tensors_of(jobs[0].out / "next"), tensors_of(jobs[1].out / "next"), tensors_of(wide)
    for name in b:
        # A bias of the keys moves no probability: its gradient is noise, which Adam makes steps of.
        atol = 2e-3 if name.endswith("k_proj.bias") else 2e-5
        np.testing.assert_allclose(a[name][: len(b[name])], b[name], rtol=1e-4, atol=atol, err_msg=name)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert np.array_equal(a[head][53:], start[head][53:]) and (a[head][:53] != start[head][:53]).any()


def test_resume_is_bit_exact(world, rows_of, tensors_of, killed_after, train, capsys):
    whole = world.job("whole")
    train(whole)
    job = world.job("parts")
    killed_after(job, 3)  # checkpoint of step 2 stands
    assert len(rows_of(job, "train")) == 3
    run(job)  # network and graphs made anew, as in another process
    assert "resumes generation 0 at step 2" in capsys.readouterr().err
    assert steps(rows_of(job, "train")) == steps(rows_of(whole, "train"))
    assert steps(rows_of(job, "lag")) == steps(rows_of(whole, "lag"))
    same(tensors_of(job.out / "next"), tensors_of(whole.out / "next"))
    same(tensors_of(job.checkpoints / "step-00000004"), tensors_of(whole.checkpoints / "step-00000004"))
    assert done(job) == done(whole)

    # The newest checkpoint damaged: the one before serves, and the end is the same.
    (job.out / "done.json").unlink()
    shutil.rmtree(job.out / "next")
    weights = job.checkpoints / "step-00000004" / "m.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    train(job)
    assert "step-00000004 is damaged" in capsys.readouterr().err
    same(tensors_of(job.out / "next"), tensors_of(whole.out / "next"))
    assert steps(rows_of(job, "train")) == steps(rows_of(whole, "train"))


def test_two_generations(world, rows_of, tensors_of, train):
    """Refresh after one epoch: rate and moments go on, lag starts from 0 again; lead takes the snapshot in passing."""
    first = world.job(end_progress=1.0, last=False, snapshot_progress=0.5)
    train(first)
    d = done(first)
    assert (d["step"], d["progress"], d["snapshot_progress"]) == (2, 1.0, 0.5)
    kept, last = tensors_of(first.out / "next"), tensors_of(first.checkpoints / "step-00000002")
    assert any((kept[k] != v).any() for k, v in tensors_of(first.student).items())
    second = world.job(
        generation=1, start_progress=1.0, snapshot=first.out / "next", fingerprint="g", out=first.out.parent / "train1"
    )
    train(second)
    rows, lag = rows_of(second, "train"), rows_of(second, "lag")
    assert [(r["step"], r["generation"]) for r in rows] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert [r["lr"] for r in rows] == [learning_rate(first.settings, p) for p in (0.5, 1, 1.5, 2)]
    # The snapshot is half an epoch old when training with its answers begins.
    begin = [r for r in lag if r["generation"] == 1][0]
    assert begin["step"] == 2 and begin["forward"] > 0
    assert last.keys() and done(second)["step"] == 4

    # Without lead the student is the generator, and lag 0.
    plain = world.job("plain", end_progress=1.0, last=False, snapshot_progress=1.0)
    train(plain)
    after = world.job(
        "plain",
        generation=1,
        start_progress=1.0,
        snapshot=plain.out / "next",
        fingerprint="g",
        out=plain.out.parent / "train1",
    )
    train(after)
    begin = [r for r in rows_of(after, "lag") if r["generation"] == 1][0]
    assert (begin["forward"], begin["reverse"]) == (0.0, 0.0)
    # Same data in both generations: a refresh changes nothing but the batches' order.
    whole = world.job("whole")
    train(whole)
    ends = rows_of(plain, "train")[:2], rows_of(whole, "train")[:2]
    assert steps(ends[0]) == steps(ends[1])

    # A generation without a predecessor's checkpoint is refused.
    shutil.rmtree(plain.checkpoints)
    shutil.rmtree(after.out)
    with pytest.raises(UserError, match="no sound checkpoint of the end of generation 0"):
        train(after)


def test_lag_decides(world, rows_of, train):
    job = world.job(end_progress=None, last=False, sync={"policy": "kl", "epsilon": 1e-6, "lag_every": 2, "lead": 0.5})
    train(job)
    d = done(job)
    assert (d["reason"], d["step"], d["progress"], d["snapshot_progress"]) == ("lag", 3, 1.5, 1.0)
    calm = world.job("calm", end_progress=None, last=False, sync={"policy": "kl", "epsilon": 9.0, "lag_every": 2})
    train(calm)
    d = done(calm)
    assert (d["reason"], d["progress"], d["snapshot_progress"]) == ("epochs", 2.0, 2.0)


def test_a_policy_of_ones_own_is_asked_after_every_step(world, train, tmp_path, monkeypatch):
    (tmp_path / "own_policy.py").write_text("""
from npd_ascend.sync.registry import Refresh, SyncPolicy, register
ASKED = []
@register("old")
class Old(SyncPolicy):
    def refresh(self, moment):
        ASKED.append((moment.progress, moment.lag is not None))
        return Refresh("age", "old") if moment.progress - moment.start >= 1 else None
""")
    monkeypatch.syspath_prepend(tmp_path)
    job = world.job(end_progress=None, last=False, sync={"policy": "own_policy:Old", "lag_every": 2, "lead": 0.5})
    train(job)
    d = done(job)
    assert (d["reason"], d["step"], d["progress"], d["snapshot_progress"]) == ("age", 3, 1.5, 1.0)
    from own_policy import ASKED

    assert ASKED == [(0.5, False), (1.0, True)]


def test_plain_sft_learns_its_labels(make_world, rows_of):
    world = make_world(labels=True, n=8)
    job = world.job(kd=0, settings={"epochs": 2.0, "lr": 0.02, "min_lr": 0.01, "checkpoint_every": 1})
    run(job)
    rows = rows_of(job, "train")
    assert all(r["loss"] == pytest.approx(r["ce"]) and r["kd"] == 0 for r in rows)
    assert rows[-1]["ce"] < rows[0]["ce"]
    assert len(list(job.checkpoints.glob("step-*"))) == 2


def test_nan_stops_with_the_samples(world, train):
    job = world.job(settings={"epochs": 2.0, "lr": 1e38, "min_lr": 1e38, "global_batch": 4, "micro_batch": 2})
    with pytest.raises(UserError, match="NaN or infinite at step") as e:
        train(job)
    (kept,) = job.out.glob("not-finite-step-*.json")
    assert str(kept) in str(e.value)
    assert set(json.loads(kept.read_text())["sample_ids"]) <= set(world.ids.tolist())
    assert not (job.out / "done.json").exists()
