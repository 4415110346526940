"""Which Hugging Face tensors make which parameter of the network, in both directions.

One table of rules. A rule names its tensors on both sides and how they are merged; splitting is the inverse. Pure
numpy, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from npd_ascend.models.spec import ModelSpec

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Rule:
    """Tensors ``hf`` (with ``shapes``) merge into parameter ``param``; ``split`` undoes ``merge``."""

    param: str
    hf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    merge: Callable[[Arrays], np.ndarray]
    split: Callable[[np.ndarray], Arrays]


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
    table = [_same("model.embedding.word_embeddings.weight", "model.embed_tokens.weight", v, h),
             _same("model.decoder.final_layernorm.weight", "model.norm.weight", h)]
    if not spec.tie_embeddings:
        table.append(_same("lm_head", "lm_head.weight", v, h))
    for i in range(spec.num_layers):
        hf, mf = f"model.layers.{i}.", f"model.decoder.layers.{i}."
        names = tuple(f"{hf}self_attn.{x}_proj." for x in "qkv")
        table += [
            _same(mf + "input_layernorm.weight", hf + "input_layernorm.weight", h),
            Rule(mf + "self_attention.linear_qkv.weight", tuple(n + "weight" for n in names),
                 ((q, h), (kv, h), (kv, h)), merge_qkv, split_qkv),
            _same(mf + "self_attention.linear_proj.weight", hf + "self_attn.o_proj.weight", h, q),
            _same(mf + "pre_mlp_layernorm.weight", hf + "post_attention_layernorm.weight", h),
            Rule(mf + "mlp.linear_fc1.weight", (hf + "mlp.gate_proj.weight", hf + "mlp.up_proj.weight"),
                 ((ffn, h), (ffn, h)), merge_gate_up, split_gate_up),
            _same(mf + "mlp.linear_fc2.weight", hf + "mlp.down_proj.weight", h, ffn),
        ]
        if spec.qkv_bias:
            table.append(Rule(mf + "self_attention.linear_qkv.bias", tuple(n + "bias" for n in names),
                              ((q,), (kv,), (kv,)), merge_qkv, split_qkv))
        if spec.o_bias:
            table.append(_same(mf + "self_attention.linear_proj.bias", hf + "self_attn.o_proj.bias", h))
    return table


def _same(param: str, hf: str, *shape: int) -> Rule:
    return Rule(param, (hf,), (shape,), lambda arrays: arrays[0], lambda array: [array])


def _qkv(spec: ModelSpec) -> tuple[Callable[[Arrays], np.ndarray], Callable[[np.ndarray], Arrays]]:
    """Rows of q, k, v by key-value group: the query heads of a group, its key head, its value head.

    A tensor-parallel slice of the rows then holds whole groups.
    """
    groups, d = spec.num_kv_heads, spec.head_dim
    per_group = spec.num_heads // groups * d

    def merge(arrays: Arrays) -> np.ndarray:
        tail = arrays[0].shape[1:]
        return np.concatenate([a.reshape(groups, -1, *tail) for a in arrays], 1).reshape(-1, *tail)

    def split(array: np.ndarray) -> Arrays:
        tail = array.shape[1:]
        blocks = np.split(array.reshape(groups, -1, *tail), [per_group, per_group + d], axis=1)
        return [np.ascontiguousarray(b).reshape(-1, *tail) for b in blocks]

    return merge, split


def _interleave(arrays: Arrays) -> np.ndarray:
    """Row 2i from gate, row 2i + 1 from up."""
    gate, up = arrays
    return np.stack([gate, up], 1).reshape(-1, gate.shape[1])


def _deinterleave(array: np.ndarray) -> Arrays:
    return [np.ascontiguousarray(array[0::2]), np.ascontiguousarray(array[1::2])]


def _halves(array: np.ndarray) -> Arrays:
    return np.split(array, 2)
