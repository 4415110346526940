"""Qwen3's dense models (arXiv:2505.09388)."""

from __future__ import annotations

from dataclasses import replace

from npd_ascend.models.families import family
from npd_ascend.models.hf_config import Reader
from npd_ascend.models.spec import ModelSpec


@family(
    "qwen3", "Qwen3ForCausalLM", defaults={"head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32768}
)
def qwen3(spec: ModelSpec, config: Reader) -> ModelSpec:
    """Queries and keys normalised head by head; no biases, unless ``attention_bias`` says so."""
    biased = config.flag("attention_bias")
    return replace(spec, qk_norm=True, qkv_bias=biased, o_bias=biased)
