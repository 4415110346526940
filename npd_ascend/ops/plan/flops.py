"""Floating-point operations and bytes of a dense decoder, from its shape.

A product of [m, k] and [k, n] takes 2mkn operations. Attention counts what a causal kernel has to do: half of the
square, Q·Kᵀ and P·V, 2 · L²/2 · 2 · heads · head_dim a layer and sequence.
"""

from __future__ import annotations

from npd_ascend.models.spec import ModelSpec


def matrix_parameters(spec: ModelSpec) -> int:
    """Weights that every token is multiplied with, the head left out."""
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return spec.num_layers * spec.hidden_size * (2 * q + 2 * kv + 3 * spec.intermediate_size)


def head_parameters(spec: ModelSpec) -> int:
    """Weights of the output projection, applied where logits are wanted."""
    return spec.vocab_size * spec.hidden_size


def forward_flops(spec: ModelSpec, sequences: float, length: float, head_tokens: float) -> float:
    """Operations of a packed forward pass.

    Args:
        spec: the model.
        sequences: number of sequences.
        length: mean tokens of one; the square of the mean is used for the mean of the squares.
        head_tokens: positions whose logits are computed, over all sequences.
    """
    attention = 2 * spec.num_layers * spec.num_heads * spec.head_dim * length**2
    return sequences * (2 * matrix_parameters(spec) * length + attention) + 2 * head_parameters(spec) * head_tokens


def decode_flops(spec: ModelSpec, context: float) -> float:
    """Operations of one new token after ``context`` tokens."""
    attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim * context
    return 2 * (matrix_parameters(spec) + head_parameters(spec)) + attention


def kv_bytes(spec: ModelSpec) -> int:
    """Bytes of one token in the KV cache, bf16."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 2


def weight_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights in bf16."""
    return 2 * spec.parameters
