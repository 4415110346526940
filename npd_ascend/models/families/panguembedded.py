"""openPangu-Embedded (arXiv:2505.22375): Llama with biases on all attention projections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npd_ascend.models.families import family
from npd_ascend.models.hf_config import Reader
from npd_ascend.models.spec import ModelSpec


def as_llama(config: dict[str, Any]) -> dict[str, Any]:
    """Its config as one of Llama's, whose class computes the same."""
    biased = Reader(config, "").flag("bias", True)
    return config | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": biased}


@family("PanguEmbedded", "PanguEmbeddedForCausalLM", transformers=as_llama)
def pangu(spec: ModelSpec, config: Reader) -> ModelSpec:
    """Biases, unless ``bias`` says no."""
    biased = config.flag("bias", True)
    return replace(spec, qkv_bias=biased, o_bias=biased)
