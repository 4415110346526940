"""Makes the openPangu-Embedded configuration known to transformers, without code from the checkpoint.

vLLM implements ``PanguEmbeddedForCausalLM`` itself but leaves the config to transformers, which does not know the
type. vLLM calls ``register`` in each of its processes through the entry point group ``vllm.general_plugins``.
"""

from __future__ import annotations


def register() -> None:
    """Registers model type ``PanguEmbedded``.

    A registered type takes precedence over a checkpoint's ``auto_map``, so no remote code is run either way.
    Calling it again changes nothing.
    """
    from transformers import AutoConfig

    from npd_ascend.rollout.pangu import MODEL_TYPE, PanguEmbeddedConfig

    AutoConfig.register(MODEL_TYPE, PanguEmbeddedConfig, exist_ok=True)
