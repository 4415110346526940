"""Prompts, rollouts and a selection on disk, with lengths as given."""

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.config.schema import PackConfig
from npd_ascend.pack.job import PackJob
from npd_ascend.store.dataset import Dataset


class Chosen:
    """``paths`` answers a prompt; attributes are the true columns by ordinal."""

    def __init__(self, root, prompts=40, paths=2, seed=0, keep=0.8):
        rng = np.random.default_rng(seed)
        self.root = root
        self.prompt_tokens = rng.integers(1, 12, prompts)
        self.index = np.repeat(np.arange(prompts), paths)
        self.response = rng.integers(1, 30, prompts * paths)
        self.keep = rng.random(prompts * paths) < keep
        self.ids = rng.integers(1, 2**62, prompts * paths)
        self.prompt = self.prompt_tokens[self.index]
        self.write()

    def write(self, selection_ids=None, shards=3):
        ids = self.ids if selection_ids is None else selection_ids
        prompts = Dataset(self.root / "prompts", "prompts", "p")
        n = len(self.prompt_tokens)
        prompts.write_table(
            0,
            pa.table(
                {
                    "prompt_index": np.arange(n),
                    "prompt_id": np.arange(n),
                    "prompt_ids": tokens(self.prompt_tokens),
                    "reference_ids": pa.nulls(n, pa.list_(pa.int32())),
                    "label_ids": pa.nulls(n, pa.list_(pa.int32())),
                    "answer": pa.nulls(n, pa.string()),
                    "text": pa.nulls(n, pa.string()),
                }
            ),
        )
        prompts.finish(1)
        rollouts = Dataset(self.root / "rollouts", "rollouts", "r")
        selection = Dataset(self.root / "selection", "selection", "s")
        for i, rows in enumerate(np.array_split(np.arange(len(self.ids)), shards)):
            n = len(rows)
            rollouts.write_table(
                i,
                pa.table(
                    {
                        "sample_id": self.ids[rows],
                        "prompt_index": self.index[rows],
                        "path": np.zeros(n, np.int8),
                        "response_ids": tokens(self.response[rows]),
                        "logprobs": pa.nulls(n, pa.list_(pa.float32())),
                        "label_ids": pa.nulls(n, pa.list_(pa.int32())),
                        "finish_reason": pa.array(["stop"] * n).dictionary_encode(),
                    }
                ),
            )
            selection.write_table(
                i,
                pa.table(
                    {
                        "sample_id": ids[rows],
                        "keep": self.keep[rows],
                        "reason": pa.array(["kept"] * n).dictionary_encode(),
                        "zone": pa.array(["proximal"] * n).dictionary_encode(),
                        "weight": np.ones(n, np.float32),
                        "metric": np.zeros(n),
                        "ifd_teacher": np.zeros(n),
                        "ifd_student": np.zeros(n),
                        "delta_ifd": np.zeros(n),
                    }
                ),
            )
        rollouts.finish(shards)
        selection.finish(shards)

    def job(self, epochs=3, group=4, seed=5, out="packs", **settings):
        return PackJob(
            out=self.root / out,
            fingerprint="k",
            prompts=self.root / "prompts",
            rollouts=self.root / "rollouts",
            selection=self.root / "selection",
            epochs=epochs,
            first_epoch_seed=seed,
            group=group,
            settings=PackConfig(**settings),
        )

    def result(self, out="packs"):
        return Dataset.open(self.root / out, "packs")


def tokens(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.ones(offsets[-1], np.int32)))


@pytest.fixture
def chosen(tmp_path):
    return Chosen(tmp_path)


@pytest.fixture
def make_chosen(tmp_path):
    return lambda **kw: Chosen(tmp_path, **kw)
