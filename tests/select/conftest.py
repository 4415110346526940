"""A small generation on disk: rollouts and scores of both models, in shards."""

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.job import SelectJob
from npd_ascend.select.metrics import delta_ifd, ifd
from npd_ascend.select.registry import Scores
from npd_ascend.store.dataset import Dataset


@pytest.fixture
def make_scores():
    """Builds ``Scores`` from lists; what is not given is unknown."""

    def make(tokens=None, truncated=None, form="loss_ratio", **nll):
        n = len(next(iter(nll.values()))) if nll else len(tokens)
        columns = {
            k: np.array(nll.get(k, [np.nan] * n), float)
            for k in ("teacher_cond", "teacher_uncond", "student_cond", "student_uncond")
        }
        teacher = ifd(columns["teacher_cond"], columns["teacher_uncond"], form)
        student = ifd(columns["student_cond"], columns["student_uncond"], form)
        return Scores(
            np.array(tokens if tokens is not None else [5] * n),
            np.array(truncated if truncated is not None else [False] * n),
            **columns,
            ifd_teacher=teacher,
            ifd_student=student,
            delta_ifd=delta_ifd(teacher, student),
            entropy=lambda name: np.full(n, np.nan),
        )

    return make


class Generation:
    """Rollouts of ``sizes`` samples a shard with random scores; attributes are the true columns."""

    def __init__(self, root, sizes=(5, 0, 7), seed=0):
        rng = np.random.default_rng(seed)
        n = sum(sizes)
        self.root, self.sizes = root, sizes
        self.ids = rng.integers(1, 2**62, n)
        self.tokens = rng.integers(1, 9, n)
        self.tokens[1] = 0
        self.finish = np.where(np.arange(n) % 4 == 2, "length", "stop")
        self.nll = {m: rng.uniform(0.5, 2.0, (2, n)) for m in ("teacher", "student")}
        for m in self.nll:
            self.nll[m][:, 1] = np.nan
        self.write()

    def _shards(self):
        at = 0
        for i, size in enumerate(self.sizes):
            yield i, slice(at, at + size)
            at += size

    def write(self, models=("teacher", "student"), ids=None):
        ids = self.ids if ids is None else ids
        rollouts = Dataset(self.root / "rollouts", "rollouts", "r")
        for i, s in self._shards():
            n = s.stop - s.start
            rollouts.write_table(
                i,
                pa.table(
                    {
                        "sample_id": self.ids[s],
                        "prompt_index": np.arange(s.start, s.stop),
                        "path": np.zeros(n, np.int8),
                        "response_ids": pa.array([[7] * int(t) for t in self.tokens[s]], pa.list_(pa.int32())),
                        "logprobs": pa.nulls(n, pa.list_(pa.float32())),
                        "label_ids": pa.nulls(n, pa.list_(pa.int32())),
                        "finish_reason": pa.array(self.finish[s].tolist(), pa.string()).dictionary_encode(),
                    }
                ),
            )
        rollouts.finish(len(self.sizes))
        for m in models:
            for row, what in enumerate(("scores", "unconditioned")):
                scores = Dataset(self.root / f"{what}_{m}", "scores", f"{what}_{m}")
                for i, s in self._shards():
                    columns = {
                        "sample_id": ids[s],
                        "tokens": self.tokens[s],
                        "nll": self.nll[m][row, s],
                        "entropy": self.nll[m][row, s] + 1,
                    }
                    scores.write_table(i, pa.table(columns))
                scores.finish(len(self.sizes))

    def job(self, teacher=True, student=True, fingerprint="s", **settings):
        return SelectJob(
            out=self.root / "selection",
            fingerprint=fingerprint,
            rollouts=self.root / "rollouts",
            quantities={
                f"{what}_{m}": self.root / f"{what}_{m}"
                for what in ("scores", "unconditioned")
                for m, there in (("teacher", teacher), ("student", student))
                if there
            },
            settings=SelectConfig(**settings),
        )

    def result(self):
        return Dataset.open(self.root / "selection", "selection")


@pytest.fixture
def generation(tmp_path):
    return Generation(tmp_path)
