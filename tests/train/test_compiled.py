"""Training with graphs of an earlier process is training with its own, to the bit."""

import subprocess
import sys

import pytest

pytest.importorskip("mindspore")

from npd_ascend.workers.jobfile import write_job  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
RANK = """
import sys
from npd_ascend.train.hooks import TrainHooks
from npd_ascend.train.job import TrainJob
from npd_ascend.train.stage import run
run(TrainJob.model_validate_json(open(sys.argv[1]).read()), TrainHooks())
"""


def test_kept_graphs_train_to_the_same_bits(world, rows_of, tensors_of, tmp_path):
    jobs = [world.job(name, compiled=tmp_path / "compiled") for name in ("made", "found")]
    times = []
    for job in jobs:
        write_job(tmp_path / "job.json", "train", job)
        subprocess.run(
            [sys.executable, "-m", "npd_ascend.workers.process", tmp_path / "job.json"], check=True, capture_output=True
        )
        times.append({p: p.stat().st_mtime_ns for p in (tmp_path / "compiled").rglob("*.mindir")})
    assert len(times[0]) == 3 and times[0] == times[1]  # network, gradients, update: made once
    made, found = (tensors_of(job.out / "next") for job in jobs)
    assert {k: v.tobytes() for k, v in made.items()} == {k: v.tobytes() for k, v in found.items()}
    for kind, what in (("train", "loss"), ("lag", "forward")):
        made, found = ([r[what] for r in rows_of(job, kind)] for job in jobs)
        assert made and made == found


def test_ranks_find_theirs(make_world, tensors_of, under_msrun, tmp_path):
    """Two ranks that hold one model, started twice: the second time nothing is compiled anew."""
    world, settings = make_world(), {"tensor_parallel": 2, "epochs": 1.0}
    student = world.student(vocab_size=56)  # which two divides
    jobs = [
        world.job(name, settings=settings, student=student, compiled=tmp_path / "compiled")
        for name in ("made", "found")
    ]
    times = []
    for job in jobs:
        (tmp_path / "job.json").write_text(job.model_dump_json())
        under_msrun(2, RANK, tmp_path / "job.json")
        times.append({p: p.stat().st_mtime_ns for p in (tmp_path / "compiled").rglob("*.mindir")})
    assert len(times[0]) == 6 and times[0] == times[1]  # three a rank
    made, found = (tensors_of(job.out / "next") for job in jobs)
    assert {k: v.tobytes() for k, v in made.items()} == {k: v.tobytes() for k, v in found.items()}
