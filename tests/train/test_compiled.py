"""Training with graphs of an earlier process is training with its own, to the bit."""

import subprocess
import sys

import pytest

pytest.importorskip("mindspore")

from npd_ascend.workers.jobfile import write_job  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]


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
