"""Qwen2 and Qwen2.5, Math and Coder included (arXiv:2407.10671, arXiv:2412.15115)."""

from __future__ import annotations

from dataclasses import replace

from npd_ascend.models.families import family
from npd_ascend.models.hf_config import Reader
from npd_ascend.models.spec import ModelSpec


@family("qwen2", "Qwen2ForCausalLM", defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768})
def qwen2(spec: ModelSpec, config: Reader) -> ModelSpec:
    """Biases on queries, keys and values, none on the output."""
    return replace(spec, qkv_bias=True)
