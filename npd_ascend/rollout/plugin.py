"""Makes the openPangu-Embedded configuration known to transformers, without code from the checkpoint.

vLLM implements ``PanguEmbeddedForCausalLM`` itself but leaves the config to transformers, which does not know the
type. vLLM calls ``register`` in each of its processes through the entry point group ``vllm.general_plugins``.
"""

from __future__ import annotations

from typing import Any

MODEL_TYPE = "PanguEmbedded"


def register() -> None:
    """Registers model type ``PanguEmbedded``: a Llama configuration whose ``bias`` is Llama's ``attention_bias``.

    A registered type takes precedence over a checkpoint's ``auto_map``, so no remote code is run either way.
    Calling it again changes nothing.
    """
    from transformers import AutoConfig, LlamaConfig

    class PanguEmbeddedConfig(LlamaConfig):
        model_type = MODEL_TYPE

        def __init__(self, bias: bool = True, **kwargs: Any):
            kwargs.setdefault("attention_bias", bias)
            kwargs.setdefault("mlp_bias", False)
            super().__init__(**kwargs)
            self.bias = bias

    AutoConfig.register(MODEL_TYPE, PanguEmbeddedConfig, exist_ok=True)
