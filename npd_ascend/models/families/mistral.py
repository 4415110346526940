"""Mistral without a sliding window: 7B from v0.2 on, Nemo, Small 3 (arXiv:2310.06825)."""

from __future__ import annotations

from npd_ascend.errors import UserError
from npd_ascend.models.families import family
from npd_ascend.models.hf_config import Reader
from npd_ascend.models.spec import ModelSpec


@family(
    "mistral",
    "MistralForCausalLM",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
)
def mistral(spec: ModelSpec, config: Reader) -> ModelSpec:
    """Llama's layout, never with biases.

    Raises:
        UserError: attention looks back over a window; transformers takes one of 4,096 where the key is missing.
    """
    window = config.config["sliding_window"]
    if window is not None:
        raise UserError(
            f"{config.where}: sliding_window is {window!r} (transformers' default is 4096); sliding "
            "windows are not supported, only full attention is (sliding_window: null)"
        )
    return spec
