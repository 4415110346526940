"""Processes under msrun end with the parameters of one, whatever is cut; a sharded run resumes bit for bit."""

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.train.stage import run  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
RANK = """
import shutil, sys
from pathlib import Path
from npd_ascend.train.job import TrainJob
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.train.hooks import TrainHooks
from npd_ascend.train.stage import run
trainers, lags = {}, {}
class Kept(TrainHooks):  # jobs that differ in their folders only share the compiled graphs
    def trainer(self, job, spec, reader, mesh):
        key = job.settings.model_dump_json()
        if key not in trainers:
            trainers[key] = super().trainer(job, spec, reader, mesh)
        trainers[key].reset()
        return trainers[key]
    def divergence(self, spec, mesh):
        return lags.setdefault((spec.vocabulary, mesh.model), super().divergence(spec, mesh))
for path in sys.argv[1:]:
    job = TrainJob.model_validate_json(open(path).read())
    folder, _, other = job.out.parent.name.partition("_")
    if folder == "resumed":  # what a run that was killed after its third step has left
        mesh = DeviceMesh(job.device)
        if mesh.leads:
            for step in (2, 3):
                name = f"step-{step:08d}"
                shutil.copytree(job.checkpoints.parents[1] / other / "checkpoints" / name, job.checkpoints / name)
        mesh.wait()
    run(job, Kept())
"""
# Where a gradient is next to nothing, sums in another order change it, and with a smaller eps Adam takes a whole step.
SETTINGS = {"epochs": 2.0, "lr": 3e-3, "min_lr": 3e-4, "global_batch": 4, "micro_batch": 1, "vocab_chunk_rows": 32,
            "eps": 1e-6}  # fmt: skip
# Multiples of the ranks; two layers, whose exchanges must meet in order.
STUDENT = {"vocab_size": 56, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
POLICY = {"terms": {"cross_entropy": 0.1, "forward_kl": 0.9, "ppo_clip": 0.1, "drift": 0.01}, "mean": "sequence"}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16}
ALL = {
    "data_parallel": 2,
    "tensor_parallel": 2,
    "optimizer_sharding": True,
    "recompute": True,
    "checkpoint_every": 1,
    "keep_checkpoints": 9,
}


def compare(many, one, rows_of, tensors_of):
    """Metrics row by row, and the exported students."""
    for mine, other in zip(rows_of(many, "train"), rows_of(one, "train"), strict=True):
        for key in ("step", "progress", "lr", "tokens"):
            assert mine[key] == other[key]
        for key in ("loss", "ce", "kd", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=2e-5)
    lag = rows_of(many, "lag")
    assert lag[0]["forward"] == 0.0
    assert [r["forward"] for r in lag] == pytest.approx([r["forward"] for r in rows_of(one, "lag")], rel=1e-3)
    a, b = tensors_of(many.out / "next"), tensors_of(one.out / "next")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.fixture
def layouts(make_world, tmp_path, kept, under_msrun):
    """(processes, changes of the student's config, settings by name) -> the job of one process and those of many, all
    done."""

    def make(n, changes=None, loss=None, **settings):
        world, loss = make_world(rewarded=bool(loss)), loss or {}
        student, kd = world.student(**STUDENT, **(changes or {})), 0.9
        one = world.job("one", settings=SETTINGS, student=student, kd=kd, loss=loss)
        run(one, kept)
        jobs = {
            name: world.job(name, settings={**SETTINGS, **s}, student=student, kd=kd, loss=loss)
            for name, s in settings.items()
        }
        files = [tmp_path / f"{name}.json" for name in jobs]
        for file, job in zip(files, jobs.values(), strict=True):
            file.write_text(job.model_dump_json())
        under_msrun(n, RANK, *files)  # one after the other, from one start
        return one, jobs

    return make


def test_two_processes(layouts, rows_of, tensors_of):
    """One model cut over both, or rows cut over both; the weights of q/k norms are whole on each. The loss has terms of
    all kinds."""
    one, jobs = layouts(2, QWEN3, POLICY, cut={"tensor_parallel": 2}, rows={"context_parallel": 2, "micro_batch": 2})
    for job in jobs.values():
        compare(job, one, rows_of, tensors_of)
        for mine, other in zip(rows_of(job, "train"), rows_of(one, "train"), strict=True):
            for key in ("term_ppo_clip", "term_drift", "policy_k3", "policy_clip_share"):
                assert mine[key] == pytest.approx(other[key], rel=2e-5, abs=1e-7) and other[key] != 0


def test_four_processes(layouts, rows_of, tensors_of):
    """Two copies of a model that is cut over two, their state cut over the copies, killed and resumed too; copies
    that share rows."""
    one, jobs = layouts(4, all=ALL, resumed_all=ALL, rows={**ALL, "data_parallel": 1, "context_parallel": 2})
    for name in ("all", "rows"):
        compare(jobs[name], one, rows_of, tensors_of)
    last = f"step-{4:08d}"
    job, again = jobs["all"], jobs["resumed_all"]
    whole, resumed = (tensors_of(j.out / "next") for j in (job, again))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    for part in ("weights", "m", "v"):
        a, b = ((j.checkpoints / last / f"{part}.safetensors").read_bytes() for j in (job, again))
        assert a == b
    assert [r["step"] for r in rows_of(again, "train")] == [4]
    # Checkpoints hold the whole model, whatever the layout: one process could go on from them.
    mine, other = (tensors_of(j.checkpoints / last) for j in (job, one))
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in other.items()}
