"""Llama 2 to 3.3 and what has its layout (SmolLM2, TinyLlama, DeepSeek's dense ones, ...)."""

from __future__ import annotations

from dataclasses import replace

from npd_ascend.models.families import family
from npd_ascend.models.hf_config import Reader
from npd_ascend.models.spec import ModelSpec


@family("llama", "LlamaForCausalLM")
def llama(spec: ModelSpec, config: Reader) -> ModelSpec:
    """No biases, unless ``attention_bias`` says so."""
    biased = config.flag("attention_bias")
    return replace(spec, qkv_bias=biased, o_bias=biased)
