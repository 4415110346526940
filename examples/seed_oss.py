"""A model family: Seed-OSS of ByteDance, Llama with biases that queries, keys and values have apart from the output."""

from __future__ import annotations

from dataclasses import replace

from npd_ascend.models.families import family
from npd_ascend.models.hf_config import Reader
from npd_ascend.models.spec import ModelSpec


@family("seed_oss", "SeedOssForCausalLM", defaults={"head_dim": 128, "max_position_embeddings": 524288})
def seed_oss(spec: ModelSpec, config: Reader) -> ModelSpec:
    """Biases as ``attention_bias`` (on where it is missing) and ``attention_out_bias`` say."""
    return replace(spec, qkv_bias=config.flag("attention_bias", True), o_bias=config.flag("attention_out_bias"))
