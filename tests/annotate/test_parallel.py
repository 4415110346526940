"""A model cut over two processes annotates as a whole one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.annotate.stage import run  # noqa: E402
from npd_ascend.config.jobs import AnnotateJob  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.store.topk_shard import TopKReader  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
RANK = """
import sys
from npd_ascend.annotate.stage import run
from npd_ascend.config.jobs import AnnotateJob
for path in sys.argv[1:]:
    run(AnnotateJob.model_validate_json(open(path).read()))
"""


def test_two_processes(tmp_path, model, data):
    prompts, rollouts, samples = data()

    def job(name, **settings):
        return AnnotateJob(
            out=tmp_path / name / "scores", fingerprint="s", prompts=prompts, rollouts=rollouts, model=model,
            topk_out=tmp_path / name / "topk", topk_fingerprint="t", role="teacher",
            settings=AnnotateConfig(k=6, row_length=64, micro_batch=2, vocab_chunk_rows=40, value_bits=16, **settings))

    one, two = job("one"), job("two", tensor_parallel=2)
    run(one)
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "job.json").write_text(two.model_dump_json())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    bin_dir = Path(sys.executable).parent
    # The second time there is nothing to do, and nobody waits for anybody.
    got = subprocess.run(
        [bin_dir / "msrun", "--worker_num=2", "--local_worker_num=2", "--join=True", f"--master_port={port}",
         f"--log_dir={tmp_path / 'logs'}", str(tmp_path / "rank.py"), *[str(tmp_path / "job.json")] * 2],
        env={**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-3000:]
    a, b = (Dataset.open(j.out, "scores").read_all().to_pydict() for j in (one, two))
    for column in ("nll_cond", "nll_uncond", "entropy", "topk_mass"):
        np.testing.assert_allclose(b[column], a[column], atol=1e-5)
    whole, cut = (TopKReader(Dataset.open(j.topk_out, "topk")) for j in (one, two))
    for i in range(len(samples)):
        x, y = whole.read(i), cut.read(i)
        assert np.array_equal(x.ids, y.ids)
        # The store rounds: at most one step of its codec apart, and logZ and entropy hardly.
        np.testing.assert_allclose(y.logz, x.logz, atol=2e-3)
        np.testing.assert_allclose(y.logprobs, x.logprobs, atol=2e-3)
