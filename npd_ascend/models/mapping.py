"""Which Hugging Face tensors make which parameter of the network, in both directions.

One table of rules. A rule names its tensors on both sides and how they are merged; splitting is the inverse. Pure
numpy, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec

Arrays = list[Array]


@dataclass(frozen=True)
class Rule:
    """Tensors ``hf`` (with ``shapes``) merge into parameter ``param``; ``split`` undoes ``merge``.

    Tensor parallelism cuts each of the tensors along axis ``cut`` into equal parts; None: every rank has it whole.
    """

    param: str
    hf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    merge: Callable[[Arrays], Array]
    split: Callable[[Array], Arrays]
    cut: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter: tensors that make one stand one behind the other."""
        return (sum(s[0] for s in self.shapes), *self.shapes[0][1:])


def rules(spec: ModelSpec, *, interleaved: bool = False) -> list[Rule]:
    """All rules of an architecture; together they cover every parameter and every tensor exactly once.

    Args:
        spec: architecture.
        interleaved: rows of gate and up in turn (MindFormers' ``MLPInterleaved``) or gate before up (``MLP``).
    """
    h, v, d = spec.hidden_size, spec.vocab_size, spec.head_dim
    q, kv, ffn = spec.num_heads * d, spec.num_kv_heads * d, spec.intermediate_size
    merge_qkv, split_qkv = _qkv(spec)
    merge_gate_up, split_gate_up = (_interleave, _deinterleave) if interleaved else (np.concatenate, _halves)
    table = [
        _same("model.embedding.word_embeddings.weight", "model.embed_tokens.weight", v, h, cut=0),
        _same("model.decoder.final_layernorm.weight", "model.norm.weight", h),
    ]
    if not spec.tie_embeddings:
        table.append(_same("lm_head", "lm_head.weight", v, h, cut=0))
    for i in range(spec.num_layers):
        hf, mf = f"model.layers.{i}.", f"model.decoder.layers.{i}."
        names = tuple(f"{hf}self_attn.{x}_proj." for x in "qkv")
        table += [
            _same(mf + "input_layernorm.weight", hf + "input_layernorm.weight", h),
            Rule(mf + "self_attention.linear_qkv.weight", tuple(n + "weight" for n in names),
                 ((q, h), (kv, h), (kv, h)), merge_qkv, split_qkv, cut=0),
            _same(mf + "self_attention.linear_proj.weight", hf + "self_attn.o_proj.weight", h, q, cut=1),
            _same(mf + "pre_mlp_layernorm.weight", hf + "post_attention_layernorm.weight", h),
            Rule(mf + "mlp.linear_fc1.weight", (hf + "mlp.gate_proj.weight", hf + "mlp.up_proj.weight"),
                 ((ffn, h), (ffn, h)), merge_gate_up, split_gate_up, cut=0),
            _same(mf + "mlp.linear_fc2.weight", hf + "mlp.down_proj.weight", h, ffn, cut=1),
        ]  # fmt: skip
        if spec.qkv_bias:
            table.append(
                Rule(
                    mf + "self_attention.linear_qkv.bias",
                    tuple(n + "bias" for n in names),
                    ((q,), (kv,), (kv,)),
                    merge_qkv,
                    split_qkv,
                    cut=0,
                )
            )
        if spec.o_bias:
            table.append(_same(mf + "self_attention.linear_proj.bias", hf + "self_attn.o_proj.bias", h))
        if spec.qk_norm:
            table += [
                _same(f"{mf}self_attention.{x}_layernorm.weight", f"{hf}self_attn.{x}_norm.weight", d) for x in "qk"
            ]
    return table


def shard_of(spec: ModelSpec, size: int) -> ModelSpec:
    """What one of ``size`` tensor-parallel ranks holds: whole attention groups, its part of the MLP and vocabulary.

    Raises:
        UserError: the architecture cannot be cut into that many equal parts.
    """
    for what, count in (
        ("attention heads", spec.num_heads),
        ("key-value heads", spec.num_kv_heads),
        ("MLP columns", spec.intermediate_size),
        ("vocabulary entries", spec.vocab_size),
    ):
        if count % size:
            raise UserError(
                f"tensor_parallel {size} does not divide the model's {count} {what}; choose a divisor of {count}"
            )
    return replace(
        spec,
        num_heads=spec.num_heads // size,
        num_kv_heads=spec.num_kv_heads // size,
        intermediate_size=spec.intermediate_size // size,
        vocab_size=spec.vocab_size // size,
    )


def heads_of(spec: ModelSpec, size: int) -> ModelSpec:
    """What attention on one of ``size`` context-parallel ranks works on: whole attention groups of a ``shard_of``.

    Raises:
        UserError: its heads cannot be dealt out evenly.
    """
    if spec.num_kv_heads % size:  # of which the query heads are a multiple
        raise UserError(
            f"context_parallel {size} does not divide the {spec.num_kv_heads} key-value heads that a "
            f"device holds; choose a divisor of {spec.num_kv_heads}"
        )
    return replace(spec, num_heads=spec.num_heads // size, num_kv_heads=spec.num_kv_heads // size)


def _same(param: str, hf: str, *shape: int, cut: int | None = None) -> Rule:
    return Rule(param, (hf,), (shape,), lambda arrays: arrays[0], lambda array: [array], cut)


def _qkv(spec: ModelSpec) -> tuple[Callable[[Arrays], Array], Callable[[Array], Arrays]]:
    """Rows of q, k, v by key-value group: the query heads of a group, its key head, its value head.

    A tensor-parallel slice of the rows then holds whole groups.
    """
    groups, d = spec.num_kv_heads, spec.head_dim
    per_group = spec.num_heads // groups * d

    def merge(arrays: Arrays) -> Array:
        tail = arrays[0].shape[1:]
        return np.concatenate([a.reshape(groups, -1, *tail) for a in arrays], 1).reshape(-1, *tail)

    def split(array: Array) -> Arrays:
        tail = array.shape[1:]
        blocks = np.split(array.reshape(groups, -1, *tail), [per_group, per_group + d], axis=1)
        return [np.ascontiguousarray(b).reshape(-1, *tail) for b in blocks]

    return merge, split


def _interleave(arrays: Arrays) -> Array:
    """Row 2i from gate, row 2i + 1 from up."""
    gate, up = arrays
    return np.stack([gate, up], 1).reshape(-1, gate.shape[1])


def _deinterleave(array: Array) -> Arrays:
    return [np.ascontiguousarray(array[0::2]), np.ascontiguousarray(array[1::2])]


def _halves(array: Array) -> Arrays:
    return np.split(array, 2)
