"""A model cut over two processes annotates as a whole one does."""

import numpy as np
import pytest

pytest.importorskip("mindspore")

from npd_ascend.annotate.job import AnnotateJob  # noqa: E402
from npd_ascend.annotate.stage import run  # noqa: E402
from npd_ascend.config.job import Target  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.store.topk_shard import TopKReader  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
WHAT = ("scores", "topk", "unconditioned")
RANK = """
import sys
from npd_ascend.annotate.stage import run
from npd_ascend.annotate.job import AnnotateJob
for path in sys.argv[1:]:
    run(AnnotateJob.model_validate_json(open(path).read()))
"""


def test_two_processes(tmp_path, model, data, under_msrun):
    prompts, rollouts, samples = data()

    def job(name, **settings):
        return AnnotateJob(
            fingerprint="",
            prompts=prompts,
            rollouts=rollouts,
            model=model,
            role="teacher",
            vocabulary=150,
            **{what: Target(folder=tmp_path / name / what, fingerprint=what) for what in WHAT},
            settings=AnnotateConfig(k=6, row_length=64, micro_batch=2, vocab_chunk_rows=40, value_bits=16, **settings),
        )

    one, two = job("one"), job("two", tensor_parallel=2)
    run(one)
    file = tmp_path / "job.json"
    file.write_text(two.model_dump_json())
    under_msrun(2, RANK, file, file)  # the second time there is nothing to do, and nobody waits for anybody
    for what in ("scores", "unconditioned"):
        a, b = (Dataset.open(j.targets[what].folder, "scores").read_all().to_pydict() for j in (one, two))
        for column in ("nll", "entropy"):
            np.testing.assert_allclose(b[column], a[column], atol=1e-5)
    whole, cut = (TopKReader(Dataset.open(j.topk.folder, "topk")) for j in (one, two))
    for i in range(len(samples)):
        x, y = whole.read(i), cut.read(i)
        assert np.array_equal(x.ids, y.ids)
        # The store rounds: at most one step of its codec apart, and logZ and entropy hardly.
        np.testing.assert_allclose(y.logz, x.logz, atol=2e-3)
        np.testing.assert_allclose(y.logprobs, x.logprobs, atol=2e-3)
