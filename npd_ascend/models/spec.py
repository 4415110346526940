"""Architecture of a dense decoder checkpoint, read from its Hugging Face ``config.json``.

Light on purpose: the executor and the rollout worker read it too, without any engine and without numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.models.families import Family, family_of
from npd_ascend.models.hf_config import Reader, read_config
from npd_ascend.models.rope import Rope, read_rope


@dataclass(frozen=True)
class ModelSpec:
    """What distinguishes one dense decoder from another.

    Attributes:
        model_type: of one of ``models/families``.
        vocab_size: width of the logits; may exceed the number of tokens of the tokenizer.
        vocabulary: ids below this count; those from here to ``vocab_size`` pad the logits and have no probability. As
            read from a folder, all count; see ``sharing``.
        head_dim: size of one attention head, not always ``hidden_size / num_heads``.
        rope: angles of the rotary embeddings.
        max_positions: positions the checkpoint was made for.
        bos_token_id, eos_token_ids, pad_token_id: as in generation_config.json, else config.json; pad falls back
            to the first end token, then 0 (padding is masked, so any id in the vocabulary serves).
        dtype: dtype the checkpoint declares, e.g. ``bfloat16``; informative, each tensor carries its own.
        qkv_bias, o_bias: biases of the attention projections; the MLP never has any.
        qk_norm: whether each query and key head is RMS-normalised before it is turned, with one weight [head_dim] for
            all query heads of a layer and one for its key heads.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    rms_norm_eps: float
    max_positions: int
    tie_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    vocabulary: int
    dtype: str = "float32"
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSpec:
        """Reads ``config.json`` (and ``generation_config.json`` when there is one).

        Raises:
            UserError: no readable config, an unknown architecture, or a feature the network does not have.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = read_config(path)
        if config is None:
            raise UserError(f"{folder}: no config.json there; expected a Hugging Face checkpoint folder")
        return cls.from_config(config, read_config(folder / "generation_config.json") or {}, str(path))

    @classmethod
    def from_config(cls, config: dict[str, Any], generation: dict[str, Any], where: str) -> ModelSpec:
        """As ``from_folder``, of parsed files; ``where`` names the file in messages."""
        family = family_of(config, where)
        _refuse_unsupported(config, family, where)
        get = Reader({**family.defaults, **config}, where)
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
        max_positions = get.count("max_position_embeddings", 2048)
        ids = {
            name: _ids(generation.get(name), f"{where} (generation_config): {name}", vocab)
            or _ids(config.get(name), f"{where}: {name}", vocab)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        spec = cls(
            model_type=family.model_type,
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=get.count("intermediate_size"),
            num_layers=get.count("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rope=read_rope(get, max_positions),
            rms_norm_eps=get.positive("rms_norm_eps", 1e-6),
            max_positions=max_positions,
            tie_embeddings=get.flag("tie_word_embeddings"),
            bos_token_id=next(iter(ids["bos_token_id"]), None),
            eos_token_ids=ids["eos_token_id"],
            pad_token_id=next(iter(ids["pad_token_id"] + ids["eos_token_id"]), 0),
            vocabulary=vocab,
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )
        return family.complete(spec, get)

    def sharing(self, vocabulary: int, where: Path) -> ModelSpec:
        """The same model over the ids that it shares with another, those of their tokenizer.

        Args:
            vocabulary: ids of the tokenizer lie below this.
            where: checkpoint folder, for the message.

        Raises:
            UserError: the logits do not cover them.
        """
        if self.vocab_size < vocabulary:
            raise UserError(
                f"{where}: its logits cover {self.vocab_size} ids but the tokenizer has {vocabulary}; the "
                "checkpoint and the tokenizer do not belong together"
            )
        return replace(self, vocabulary=vocabulary)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        h = self.hidden_size
        layer = h * (2 * q + 2 * kv + 3 * self.intermediate_size + 2)
        layer += (q + 2 * kv) * self.qkv_bias + h * self.o_bias + 2 * self.head_dim * self.qk_norm
        return self.vocab_size * h * (1 if self.tie_embeddings else 2) + self.num_layers * layer + h

    @property
    def softmax_scale(self) -> float:
        """What products of queries and keys are multiplied by: 1 / √head_dim, and the attention factor of the rope once
        for the queries and once for the keys, which then need not be multiplied by it."""
        factor = self.rope.attention_factor
        return factor * factor / math.sqrt(self.head_dim)


def _refuse_unsupported(config: dict[str, Any], family: Family, where: str) -> None:
    # Better refused than run as another model than the checkpoint is.
    named, ours = config.get("architectures"), family.architecture
    if named is not None and (not isinstance(named, list) or ours not in named):
        raise UserError(
            f"{where}: architectures is {named!r}, expected [{ours!r}]; vLLM would take it for another model"
        )
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise UserError(f"{where}: hidden_act {act!r} is not supported; only silu is")
    if config.get("mlp_bias"):
        raise UserError(f"{where}: mlp_bias is not supported")
    kinds = config.get("layer_types") or []
    if config.get("use_sliding_window") or any(k != "full_attention" for k in kinds):
        raise UserError(
            f"{where}: sliding windows are not supported (use_sliding_window, layer_types); only full attention is"
        )
    if config.get("quantization_config"):
        raise UserError(f"{where}: the checkpoint is quantised; give the unquantised weights")


def _ids(value: Any, where: str, vocab: int) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int) or not -1 <= v < vocab:
            raise UserError(f"{where} is {value!r}, expected token ids below the vocabulary size {vocab}")
    return tuple(v for v in values if v >= 0)
