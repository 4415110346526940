"""A plain forward pass in numpy, float64: what the network of a device is compared with.

Written from the architecture of Llama-like decoders as transformers computes it: one sample at a time, nothing packed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.models.spec import ModelSpec


def hidden_states(spec: ModelSpec, weights: Mapping[str, Array], ids: Array) -> Array:
    """Final hidden states [T, H] of a sample.

    Args:
        spec: architecture, without norms of query and key heads.
        weights: float64, by name in a Hugging Face checkpoint.
        ids: [T] token ids.
    """
    x = weights["model.embed_tokens.weight"][ids]
    for i in range(spec.num_layers):
        w = _Layer(weights, f"model.layers.{i}.")
        x = x + _attention(spec, w, _norm(x, w("input_layernorm.weight"), spec.rms_norm_eps))
        h = _norm(x, w("post_attention_layernorm.weight"), spec.rms_norm_eps)
        gate, up = h @ w("mlp.gate_proj.weight").T, h @ w("mlp.up_proj.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w("mlp.down_proj.weight").T
    return _norm(x, weights["model.norm.weight"], spec.rms_norm_eps)


class _Layer:
    def __init__(self, weights: Mapping[str, Array], at: str):
        self._weights, self._at = weights, at

    def __call__(self, name: str) -> Array:
        return self._weights[self._at + name]

    def project(self, name: str, x: Array) -> Array:
        """x Wᵀ + b."""
        bias = self._weights.get(f"{self._at}self_attn.{name}_proj.bias")
        out: Array = x @ self(f"self_attn.{name}_proj.weight").T
        return out if bias is None else out + bias


def _attention(spec: ModelSpec, w: _Layer, x: Array) -> Array:
    length, d = len(x), spec.head_dim
    heads = {n: w.project(n, x).reshape(length, -1, d).transpose(1, 0, 2) for n in "qkv"}
    angles = np.outer(np.arange(length), spec.rope.inverse_frequencies(d))
    q, k = (_turned(heads[n], angles, spec.rope.attention_factor) for n in "qk")
    k, v = (np.repeat(a, spec.num_heads // spec.num_kv_heads, 0) for a in (k, heads["v"]))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(d)
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (p / p.sum(-1, keepdims=True)) @ v
    return w.project("o", mixed.transpose(1, 0, 2).reshape(length, -1))


def _turned(x: Array, angles: Array, factor: float) -> Array:
    a, b = np.split(x, 2, -1)
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _norm(x: Array, weight: Array, eps: float) -> Array:
    out: Array = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight
    return out
