"""The configuration class of openPangu-Embedded. A module of its own, because it needs transformers, and because what
vLLM sends to the processes of an engine must be importable there."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

MODEL_TYPE = "PanguEmbedded"


class PanguEmbeddedConfig(LlamaConfig):
    """A Llama configuration whose ``bias`` is Llama's ``attention_bias``."""

    model_type = MODEL_TYPE

    def __init__(self, bias: bool = True, **kwargs: Any):
        kwargs.setdefault("attention_bias", bias)
        kwargs.setdefault("mlp_bias", False)
        super().__init__(**kwargs)
        self.bias = bias
