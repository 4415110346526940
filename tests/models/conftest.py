"""Small checkpoints made in code from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from npd_ascend.models import tensorfile
from npd_ascend.models.mapping import rules
from npd_ascend.models.spec import ModelSpec

BASE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "float32"}
FAMILIES = {
    "pangu": {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True},
    "pangu_tied": {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True,
                   "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 16},
    "llama_tied": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
                   "num_key_value_heads": 6},
}


def make_checkpoint(folder: Path, config: dict, *, seed: int = 0, dtype: str = "F32", shards: int = 1) -> Path:
    """Writes a random checkpoint: config.json, generation_config.json and safetensors in ``shards`` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    (folder / "tokenizer.json").write_text("{}")
    spec = ModelSpec.from_folder(folder)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in sorted((n, s) for r in rules(spec) for n, s in zip(r.hf, r.shapes, strict=True)):
        mean, scale = (1.0, 0.1) if "norm" in name else (0.0, 0.3 if name.endswith("bias") else 0.12)
        tensors[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
    names = list(tensors)
    files = ["model.safetensors"] if shards == 1 else [
        f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        mine = names[i::shards]
        tensorfile.write(folder / file, [(n, dtype, tensors[n].shape) for n in mine], tensors.__getitem__)
    if shards > 1:
        index = {"metadata": {}, "weight_map": {n: files[j % shards] for j, n in enumerate(names)}}
        (folder / tensorfile.INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    """Factory: (family, **config changes; seed, dtype, shards) -> folder."""
    def make(family: str = "pangu", *, seed: int = 0, dtype: str = "F32", shards: int = 1, name: str = "hf",
             **changes) -> Path:
        return make_checkpoint(tmp_path / name, {**BASE, **FAMILIES[family], **changes}, seed=seed, dtype=dtype,
                               shards=shards)
    return make
