"""Whether vLLM can answer with a checkpoint, as far as its config and file names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.models.hf_files import shared_config
from npd_ascend.store.identity import weights_stamp

_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM's CPU attention is compiled for."""
_ARCHITECTURE_FREE = (
    "_name_or_path",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
)


def check_servable(model: Path, target: str, length: int) -> None:
    """Whether vLLM can answer with a checkpoint, as far as its config and file names say.

    Args:
        model: Hugging Face folder.
        target: ``cpu`` or ``ascend``.
        length: most tokens of a prompt and its answer together.

    Raises:
        UserError: it cannot.
    """
    config = read_architecture(model)
    limit = config.get("max_position_embeddings")
    if limit is not None and length > limit:
        raise UserError(
            f"{model} was made for {limit} positions but prompts and answers need {length}; "
            "lower rollout.max_new_tokens or data.max_prompt_tokens"
        )
    if target == "cpu" and {"hidden_size", "num_attention_heads"} <= config.keys():
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if dim not in _CPU_HEAD_DIMS:
            raise UserError(
                f"{model} has heads of {dim}; vLLM's CPU attention knows {', '.join(map(str, _CPU_HEAD_DIMS))}"
            )
    if not weights_stamp(model):
        raise UserError(f"{model}: no *.safetensors there; expected a Hugging Face checkpoint folder")


def read_architecture(model: Path) -> dict[str, Any]:
    """What two checkpoints of one architecture have in common of their config.json.

    Raises:
        UserError: there is none that can be read.
    """
    try:
        config = json.loads((model / "config.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{model}: no config.json there; expected a Hugging Face checkpoint folder") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{model}/config.json: cannot be read ({e})") from None
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        raise UserError(f"{model}/config.json: vocab_size is missing; it is no causal language model's configuration")
    return {k: v for k, v in shared_config(config).items() if k not in _ARCHITECTURE_FREE}
