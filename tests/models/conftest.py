"""Small checkpoints made in code from a seed."""

from __future__ import annotations

import pytest

from npd_ascend.models.initial import initial_checkpoint

BASE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "torch_dtype": "float32"}  # fmt: skip
FAMILIES = {
    "pangu": {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True},
    "pangu_tied": {
        "model_type": "PanguEmbedded",
        "architectures": ["PanguEmbeddedForCausalLM"],
        "bias": True,
        "tie_word_embeddings": True,
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 16},
    "llama_tied": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "num_key_value_heads": 6,
    },
    "llama3": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "head_dim": 16,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "head_dim": 16,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "qwen2_yarn": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "head_dim": 16,
        "sliding_window": None,
    },
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "qwen3_tied": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 32,
        "num_key_value_heads": 6,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "rope_theta": 1e6,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.3,
            "truncate": False,
        },
    },
}


@pytest.fixture(scope="session")
def configs():
    """config.json of each family, by name."""
    return {name: {**BASE, **changes} for name, changes in FAMILIES.items()}


@pytest.fixture
def checkpoint(tmp_path, configs):
    """Factory: (family, ..., **config changes) -> folder with a random checkpoint."""

    def make(family="pangu", *, seed=0, dtype="F32", shards=1, name="hf", **changes):
        folder = tmp_path / name
        initial_checkpoint(
            folder,
            {**configs[family], **changes},
            seed=seed,
            dtype=dtype,
            std=0.12,
            norm_std=0.1,
            bias_std=0.3,
            shard_bytes=10**9 if shards == 1 else 60_000,
        )
        (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return make
