"""Tiny checkpoints, prompts and jobs, made from seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from npd_ascend.config.schema import RolloutConfig
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import prompt_id

VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, EOS = 128, 64, 4, 2, 32, 128, 2, 4


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """``make_checkpoint(folder, seed, **config)``: a random openPangu-Embedded checkpoint of 2 layers, float32."""

    def make(folder: Path, seed: int = 0, **config: object) -> Path:
        rng = np.random.default_rng(seed)
        width = config.get("vocab_size", VOCAB)

        def normal(*shape: int, scale: float = 0.08) -> np.ndarray:
            return (rng.standard_normal(shape) * scale).astype(np.float32)

        weights = {
            "model.embed_tokens.weight": normal(width, HIDDEN, scale=0.5),
            "lm_head.weight": normal(width, HIDDEN, scale=0.5),
            "model.norm.weight": 1 + normal(HIDDEN),
        }
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        for i in range(LAYERS):
            layer = f"model.layers.{i}."
            for name, rows, columns in (("q", q, HIDDEN), ("k", kv, HIDDEN), ("v", kv, HIDDEN), ("o", HIDDEN, q)):
                weights[f"{layer}self_attn.{name}_proj.weight"] = normal(rows, columns, scale=0.16)
                weights[f"{layer}self_attn.{name}_proj.bias"] = normal(rows)
            for name, rows, columns in (("gate", FFN, HIDDEN), ("up", FFN, HIDDEN), ("down", HIDDEN, FFN)):
                weights[f"{layer}mlp.{name}_proj.weight"] = normal(rows, columns, scale=0.16)
            for name in ("input_layernorm", "post_attention_layernorm"):
                weights[f"{layer}{name}.weight"] = 1 + normal(HIDDEN)
        folder.mkdir(parents=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(
            json.dumps(
                {
                    "architectures": ["PanguEmbeddedForCausalLM"],
                    "model_type": "PanguEmbedded",
                    "bias": True,
                    "auto_map": {"AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig"},
                    "hidden_act": "silu",
                    "rms_norm_eps": 1e-5,
                    "rope_theta": 16e6,
                    "max_position_embeddings": 512,
                    "tie_word_embeddings": False,
                    "torch_dtype": "float32",
                    "vocab_size": VOCAB,
                    "hidden_size": HIDDEN,
                    "intermediate_size": FFN,
                    "num_hidden_layers": LAYERS,
                    "num_attention_heads": HEADS,
                    "num_key_value_heads": KV_HEADS,
                    "head_dim": HEAD_DIM,
                    "bos_token_id": 1,
                    "eos_token_id": EOS,
                    **config,
                }
            )
        )
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> tuple[Path, Path]:
    """Two checkpoints of one shape."""
    root = tmp_path_factory.mktemp("models")
    return make_checkpoint(root / "a", 0), make_checkpoint(root / "b", 1)


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., Path]:
    """``make_prompts(folder, n, shard_size, seed=0, references=True, ids=None)``: a ``prompts`` dataset."""

    def make(
        folder: Path,
        n: int,
        shard_size: int,
        seed: int = 0,
        references: bool = True,
        ids: list[list[int]] | None = None,
    ) -> Path:
        rng = np.random.default_rng(seed)
        ids = ids or [rng.integers(5, VOCAB, rng.integers(3, 30)).tolist() for _ in range(n)]
        dataset = Dataset(folder, "prompts", f"prompts-{seed}")
        starts = range(0, len(ids), shard_size) if ids else []
        for shard, start in enumerate(starts):
            part = ids[start : start + shard_size]
            index = range(start, start + len(part))
            dataset.write_table(
                shard,
                pa.table(
                    {
                        "prompt_index": list(index),
                        "prompt_ids": pa.array(part, pa.list_(pa.int32())),
                        "prompt_id": [prompt_id(p, i) for p, i in zip(part, index, strict=True)],
                        "reference_ids": pa.array(
                            [p[::-1] + [EOS] if references else None for p in part], pa.list_(pa.int32())
                        ),
                        "label_ids": pa.array(
                            [[7] * (len(p) + 1) if i % 2 else None for i, p in enumerate(part)], pa.list_(pa.int32())
                        ),
                        "answer": pa.nulls(len(part), pa.string()),
                        "text": pa.nulls(len(part), pa.string()),
                    }
                ),
            )
        dataset.finish(len(starts))
        return folder

    return make


@pytest.fixture(scope="session")
def make_job() -> Callable[..., RolloutJob]:
    """``make_job(out, prompts, model, generation=0, max_model_len=128, **settings)``."""

    def make(
        out: Path,
        prompts: Path,
        model: Path = Path("none"),
        *,
        generation: int = 0,
        max_model_len: int = 128,
        fingerprint: str = "rollouts",
        vocabulary: int = VOCAB,
        **settings: object,
    ) -> RolloutJob:
        defaults = {"max_new_tokens": 40, "samples": 1, "max_num_seqs": 16, "kv_cache_gib": 0.125}
        return RolloutJob(
            out=out,
            fingerprint=fingerprint,
            prompts=prompts,
            model=model,
            generation=generation,
            seed=7,
            settings=RolloutConfig.model_validate({**defaults, **settings}),
            max_model_len=max_model_len,
            eos_token_ids=[EOS],
            vocabulary=vocabulary,
        )

    return make
