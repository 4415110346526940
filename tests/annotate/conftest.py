"""A small model and datasets of prompts and rollouts for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.store.dataset import Dataset

VOCAB, HEADER = 150, [1, 7, 8]
CONFIG = {"model_type": "PanguEmbedded", "bias": True, "vocab_size": VOCAB, "hidden_size": 32,
          "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Random checkpoint with peaked distributions; logits are wider than the ids in use."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    initial_checkpoint(folder, CONFIG, seed=1, std=0.25, norm_std=0.1, bias_std=0.2)
    return folder


@pytest.fixture
def data(tmp_path):
    """Factory: writes finished prompts and rollouts; returns their folders and the samples."""

    def make(
        shards=2,
        per_shard=7,
        paths=2,
        seed=0,
        empty=True,
        logprobs=True,
        longest=24,
        name="data",
        masked=lambda row: None,
    ):
        rng = np.random.default_rng(seed)
        prompts = Dataset(tmp_path / name / "prompts", "prompts", "p")
        rollouts = Dataset(tmp_path / name / "rollouts", "rollouts", "r")
        samples = []
        for s in range(shards):
            numbers = range(s * per_shard, (s + 1) * per_shard)
            ids = [rng.integers(3, VOCAB - 20, rng.integers(2, 12)).tolist() for _ in numbers]
            prompts.write_table(
                s,
                pa.table(
                    {
                        "prompt_index": numbers,
                        "prompt_id": numbers,
                        "prompt_ids": ids,
                        "reference_ids": [None] * per_shard,
                        "label_ids": [None] * per_shard,
                        "answer": [""] * per_shard,
                        "text": [""] * per_shard,
                    }
                ),
            )
            rows = [
                (p, path, rng.integers(3, VOCAB - 20, rng.integers(1, longest)).tolist())
                for p in numbers
                for path in range(paths)
            ]
            if empty:
                rows[1] = (*rows[1][:2], [])
            stored = [(-rng.random(len(r))).astype(np.float32).tolist() if logprobs else None for *_, r in rows]
            rollouts.write_table(
                s,
                pa.table(
                    {
                        "sample_id": [1000 * s + i for i in range(len(rows))],
                        "prompt_index": [r[0] for r in rows],
                        "path": [r[1] for r in rows],
                        "response_ids": [r[2] for r in rows],
                        "logprobs": stored,
                        "label_ids": pa.array([None] * len(rows), pa.list_(pa.int32())),
                        "finish_reason": ["stop"] * len(rows),
                        "masked": pa.array([masked(r) for *_, r in rows], pa.list_(pa.int32())),
                    }
                ),
            )
            samples += [
                (np.array(ids[p - s * per_shard]), np.array(r, np.int32), lp)
                for (p, _, r), lp in zip(rows, stored, strict=True)
            ]
        prompts.finish(shards, header_ids=HEADER, longest_prompt=11)
        rollouts.finish(shards)
        return prompts.folder, rollouts.folder, samples

    return make
