"""A forward pass of a checkpoint in plain torch: what an engine's answers are measured against.

It shares nothing with the engine. Weights come from the safetensors files, not from the engine's memory, one layer at a
time, and the arithmetic is ordinary torch on the CPU: no packed copy, no captured graph, no fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec

_HEAD_ROWS = 8192


def token_logprobs(
    folder: Path,
    ids: Sequence[int],
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
    vocabulary: int | None = None,
) -> Array:
    """Log-prob of each token of one sequence given those before it.

    Of T tokens it takes 2 T floating point operations a parameter, and reads and converts the files once. For a handful
    of tokens that is some 10 ms for a few million parameters, 0.3 s for 135M, about 2 s for 1B and 10 to 15 s for 7B on
    a server's cores, most of it for reading and converting. Memory: one layer, or 8,192 rows of the head.

    Args:
        folder: a checkpoint of one of the families that ``ModelSpec`` knows.
        ids: token ids, at least two.
        dtype: type of the computation; norms, softmax and log-softmax are taken in float32 at least.
        stored: type in which the engine keeps weights, to which they are rounded first; None: as in the files.
        vocabulary: token ids below this count; logits from here on are padding. None: all are tokens.

    Returns:
        float64 [T - 1], nats; entry i belongs to ``ids[i + 1]``.

    Raises:
        UserError: a tensor that the configuration asks for is missing.
    """
    spec = ModelSpec.from_folder(folder)
    with torch.inference_mode(), ExitStack() as files:
        weights = _Weights(folder, files, dtype, stored)
        x = weights.rows("model.embed_tokens.weight", ids)
        angles = _angles(spec, len(ids), _wide(dtype))
        for layer in range(spec.num_layers):
            name = f"model.layers.{layer}."
            x = x + _attention(
                spec, weights, f"{name}self_attn.", weights.norm(f"{name}input_layernorm", x, spec), angles
            )
            x = x + _mlp(weights, f"{name}mlp.", weights.norm(f"{name}post_attention_layernorm", x, spec))
        x = weights.norm("model.norm", x, spec)[:-1]
        head = "model.embed_tokens.weight" if spec.tie_embeddings else "lm_head.weight"
        return _logprobs(weights, head, x, torch.tensor(ids[1:]), _wide(dtype), vocabulary)


class _Weights:
    """Tensors of a checkpoint by name, read when they are asked for."""

    def __init__(self, folder: Path, files: ExitStack, dtype: torch.dtype, stored: torch.dtype | None):
        self._folder, self._dtype, self._stored = folder, dtype, stored
        opened = [files.enter_context(safe_open(f, "pt")) for f in sorted(folder.glob("*.safetensors"))]
        self._files = {name: f for f in opened for name in f.keys()}

    def slice(self, name: str) -> Any:
        if name not in self._files:
            raise UserError(f"{self._folder}: {name} is missing; the checkpoint is not what its config.json says")
        return self._files[name].get_slice(name)

    def whole(self, name: str) -> torch.Tensor:
        return self.convert(self.slice(name)[:])

    def rows(self, name: str, ids: Sequence[int]) -> torch.Tensor:
        table = self.slice(name)
        return self.convert(torch.cat([table[i : i + 1] for i in ids]))

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        bias = self.whole(f"{name}.bias") if f"{name}.bias" in self._files else None
        return F.linear(x, self.whole(f"{name}.weight"), bias)

    def norm(self, name: str, x: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
        wide = x.to(_wide(self._dtype))
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + spec.rms_norm_eps)
        return scaled.to(self._dtype) * self.whole(f"{name}.weight")

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor if self._stored is None else tensor.to(self._stored)).to(self._dtype)


def _attention(
    spec: ModelSpec, weights: _Weights, name: str, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Causal self-attention of one sequence, [T, hidden] to [T, hidden]."""
    t = len(x)

    def heads(which: str, count: int) -> torch.Tensor:
        z = weights.linear(f"{name}{which}_proj", x).view(t, count, spec.head_dim).transpose(0, 1)
        return weights.norm(f"{name}{which}_norm", z, spec) if spec.qk_norm and which != "v" else z

    q, k = (_rotate(heads(w, n), angles) for w, n in (("q", spec.num_heads), ("k", spec.num_kv_heads)))
    k, v = (z.repeat_interleave(spec.num_heads // spec.num_kv_heads, 0) for z in (k, heads("v", spec.num_kv_heads)))
    scores = (q @ k.transpose(1, 2)).to(angles[0].dtype) * spec.head_dim**-0.5
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype) @ v
    return weights.linear(f"{name}o_proj", mixed.transpose(0, 1).reshape(t, -1))


def _mlp(weights: _Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    gate = F.silu(weights.linear(f"{name}gate_proj", x))
    return weights.linear(f"{name}down_proj", gate * weights.linear(f"{name}up_proj", x))


def _angles(spec: ModelSpec, length: int, wide: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary embedding, [T, head_dim] each."""
    inverse = torch.tensor(spec.rope.inverse_frequencies(spec.head_dim), dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * inverse
    angles = torch.cat([angles, angles], -1)
    factor = spec.rope.attention_factor
    return (angles.cos() * factor).to(wide), (angles.sin() * factor).to(wide)


def _rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of [heads, T, head_dim], the halves of a head being the two coordinates."""
    wide = x.to(angles[0].dtype)
    first, second = wide.chunk(2, -1)
    return (wide * angles[0] + torch.cat([-second, first], -1) * angles[1]).to(x.dtype)


def _logprobs(
    weights: _Weights, head: str, x: torch.Tensor, targets: torch.Tensor, wide: torch.dtype, vocabulary: int | None
) -> Array:
    table = weights.slice(head)
    rows = vocabulary or table.get_shape()[0]
    log_z = torch.full((len(x),), -torch.inf, dtype=wide)
    own = torch.full((len(x),), torch.nan, dtype=wide)
    for start in range(0, rows, _HEAD_ROWS):
        logits = (x @ weights.convert(table[start : min(start + _HEAD_ROWS, rows)]).T).to(wide)
        log_z = torch.logaddexp(log_z, logits.logsumexp(-1))
        here = (targets >= start) & (targets < start + logits.shape[1])
        own[here] = logits[here].gather(1, (targets[here] - start)[:, None])[:, 0]
    return (own - log_z).double().numpy()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
