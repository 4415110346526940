"""Architecture of a dense decoder checkpoint, read from its Hugging Face ``config.json``.

Light on purpose: the conductor and the rollout worker read it too, without any engine and without numpy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError

FAMILIES = {"PanguEmbedded": "PanguEmbeddedForCausalLM", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Supported values of ``model_type``, and the class that transformers and vLLM know each by."""


@dataclass(frozen=True)
class ModelSpec:
    """What distinguishes one dense decoder from another.

    Attributes:
        model_type: ``PanguEmbedded``, ``llama`` or ``qwen2``.
        vocab_size: width of the logits; may exceed the number of tokens of the tokenizer.
        vocabulary: ids below this count; those from here to ``vocab_size`` pad the logits and have no probability. As
            read from a folder, all count; see ``sharing``.
        head_dim: size of one attention head, not always ``hidden_size / num_heads``.
        max_positions: positions the checkpoint was made for.
        qkv_bias, o_bias: biases of the attention projections; the MLP never has any.
        bos_token_id, eos_token_ids, pad_token_id: as in generation_config.json, else config.json; pad falls back
            to the first end token, then 0 (padding is masked, so any id in the vocabulary serves).
        dtype: dtype the checkpoint declares, e.g. ``bfloat16``; informative, each tensor carries its own.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_positions: int
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    vocabulary: int
    dtype: str = "float32"

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSpec:
        """Reads ``config.json`` (and ``generation_config.json`` when there is one).

        Raises:
            UserError: no readable config, an unknown architecture, or a feature the network does not have.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = _read(path)
        if config is None:
            raise UserError(f"{folder}: no config.json there; expected a Hugging Face checkpoint folder")
        return cls.from_config(config, _read(folder / "generation_config.json") or {}, str(path))

    @classmethod
    def from_config(cls, config: dict[str, Any], generation: dict[str, Any], where: str) -> ModelSpec:
        """As ``from_folder``, of parsed files; ``where`` names the file in messages."""
        get = _Reader(config, where)
        family = config.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise UserError(f"{where}: model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
        _refuse_unsupported(config, where)
        heads, hidden = get.count("num_attention_heads"), get.count("hidden_size")
        kv_heads = get.count("num_key_value_heads", heads)
        if hidden % heads:
            raise UserError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        if heads % kv_heads:
            raise UserError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        head_dim = get.count("head_dim", hidden // heads)
        if head_dim % 2:
            raise UserError(f"{where}: head_dim {head_dim} is odd; rotary embeddings need pairs")
        vocab = get.count("vocab_size")
        biases = {"PanguEmbedded": bool(config.get("bias", True)), "qwen2": True,
                  "llama": bool(config.get("attention_bias", False))}
        ids = {name: _ids(generation.get(name), f"{where} (generation_config): {name}", vocab)
               or _ids(config.get(name), f"{where}: {name}", vocab)
               for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return cls(
            model_type=family, vocab_size=vocab, hidden_size=hidden,
            intermediate_size=get.count("intermediate_size"), num_layers=get.count("num_hidden_layers"),
            num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
            rope_theta=_rope_theta(config, where), rms_norm_eps=get.positive("rms_norm_eps", 1e-6),
            max_positions=get.count("max_position_embeddings", 2048),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=biases[family], o_bias=biases[family] and family != "qwen2",
            bos_token_id=next(iter(ids["bos_token_id"]), None), eos_token_ids=ids["eos_token_id"],
            pad_token_id=next(iter(ids["pad_token_id"] + ids["eos_token_id"]), 0), vocabulary=vocab,
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"))

    def sharing(self, vocabulary: int, where: Path) -> ModelSpec:
        """The same model over the ids that it shares with another, those of their tokenizer.

        Args:
            vocabulary: ids of the tokenizer lie below this.
            where: checkpoint folder, for the message.

        Raises:
            UserError: the logits do not cover them.
        """
        if self.vocab_size < vocabulary:
            raise UserError(f"{where}: its logits cover {self.vocab_size} ids but the tokenizer has {vocabulary}; the "
                            "checkpoint and the tokenizer do not belong together")
        return replace(self, vocabulary=vocabulary)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        h = self.hidden_size
        layer = h * (2 * q + 2 * kv + 3 * self.intermediate_size + 2)
        layer += (q + 2 * kv) * self.qkv_bias + h * self.o_bias
        return self.vocab_size * h * (1 if self.tie_embeddings else 2) + self.num_layers * layer + h


class _Reader:
    """Typed access to config values, with a clear line for a wrong one."""

    def __init__(self, config: dict[str, Any], where: str):
        self.config, self.where = config, where

    def count(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.where}: {key} is {value!r}, expected a whole number of at least 1")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
            raise UserError(f"{self.where}: {key} is {value!r}, expected a positive number")
        return float(value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where}: {key} is missing")
        return value


def _refuse_unsupported(config: dict[str, Any], where: str) -> None:
    # Better refused than run as another model than the checkpoint is.
    named, ours = config.get("architectures"), FAMILIES[config["model_type"]]
    if named is not None and (not isinstance(named, list) or ours not in named):
        raise UserError(f"{where}: architectures is {named!r}, expected [{ours!r}]; vLLM would take it for another "
                        "model")
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise UserError(f"{where}: hidden_act {act!r} is not supported; only silu is")
    if config.get("mlp_bias"):
        raise UserError(f"{where}: mlp_bias is not supported")
    kinds = config.get("layer_types") or []
    if config.get("use_sliding_window") or any(k != "full_attention" for k in kinds):
        raise UserError(f"{where}: sliding windows are not supported (use_sliding_window, layer_types); only full "
                        "attention is")
    if config.get("quantization_config"):
        raise UserError(f"{where}: the checkpoint is quantised; give the unquantised weights")


def _rope_theta(config: dict[str, Any], where: str) -> float:
    """Base of the rotary angles: a key of its own (transformers 4), inside ``rope_parameters`` (5), or both."""
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{where}: {key} is {value!r}, expected an object")
        if any(isinstance(v, dict) for v in (value or {}).values()):
            raise UserError(f"{where}: {key} differs by kind of layer, which is not supported")
        rope |= value or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where}: rope type {kind!r} is not supported; only the plain one (default) is")
    partial = [c["partial_rotary_factor"] for c in (config, rope) if c.get("partial_rotary_factor") not in (None, 1)]
    if config.get("rope_interleaved") or partial:
        raise UserError(f"{where}: interleaved or partial rotary embeddings are not supported")
    bases = [b for b in (config.get("rope_theta"), rope.get("rope_theta")) if b is not None]
    if len(bases) == 2 and bases[0] != bases[1]:
        raise UserError(f"{where}: rope_theta is {bases[0]!r}, but {bases[1]!r} in rope_parameters, so transformers 4 "
                        "and 5 would run two different models; remove the wrong one")
    return _Reader({"rope_theta": bases[0] if bases else None}, where).positive("rope_theta", 10000.0)


def _ids(value: Any, where: str, vocab: int) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int) or not -1 <= v < vocab:
            raise UserError(f"{where} is {value!r}, expected token ids below the vocabulary size {vocab}")
    return tuple(v for v in values if v >= 0)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: not readable as JSON ({e})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value
