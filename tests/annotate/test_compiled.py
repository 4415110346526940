"""Annotation with graphs of an earlier process, that of another model, is annotation with its own, to the bit."""

import subprocess
import sys

import pytest

pytest.importorskip("mindspore")

from npd_ascend.annotate.job import AnnotateJob  # noqa: E402
from npd_ascend.annotate.stage import run  # noqa: E402
from npd_ascend.config.job import Target  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig  # noqa: E402
from npd_ascend.models.initial import initial_checkpoint  # noqa: E402
from npd_ascend.workers.jobfile import write_job  # noqa: E402
from tests.annotate.conftest import CONFIG  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]


def test_kept_graphs_annotate_to_the_same_bits(tmp_path, model, data):
    prompts, rollouts, _ = data()
    other, compiled = tmp_path / "other", tmp_path / "compiled"
    initial_checkpoint(other, CONFIG, seed=2, std=0.25, norm_std=0.1, bias_std=0.2)

    def job(name, model, row=128):
        targets = {
            what: Target(folder=tmp_path / name / what, fingerprint=what)
            for what in ("scores", "topk", "unconditioned")
        }
        return AnnotateJob(
            fingerprint="",
            prompts=prompts,
            rollouts=rollouts,
            model=model,
            role="teacher",
            vocabulary=150,
            **targets,
            compiled=None if name == "own" else compiled,
            settings=AnnotateConfig(k=6, row_length=row, micro_batch=2, vocab_chunk_rows=40),
        )

    def child(job):
        write_job(tmp_path / "job.json", "annotate_teacher", job)
        subprocess.run(
            [sys.executable, "-m", "npd_ascend.workers.process", tmp_path / "job.json"], check=True, capture_output=True
        )
        return {p: p.stat().st_mtime_ns for p in compiled.rglob("*.mindir")}

    made = child(job("made", model))
    assert len(made) >= 3  # the network for one or two attention windows, the head for two sizes
    assert child(job("found", other)) == made
    run(job("own", other))
    files = {
        name: [p.read_bytes() for p in sorted((tmp_path / name).rglob("shard-*")) if p.suffix != ".json"]
        for name in ("found", "own", "made")
    }
    assert len(files["own"]) == 6 and files["found"] == files["own"] != files["made"]
