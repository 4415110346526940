"""Attention over packed rows with plain operators, for devices without a flash kernel.

MindSpore's CPU kernels are quick where shapes are equal and in matrix products, and slow where one operand is broadcast
or cut; hence tables that are made once a pass, and products with constants.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention
from mindspore import nn, ops

from npd_ascend.arrays import Array
from npd_ascend.models.kernels import MoveRows
from npd_ascend.models.norm import NormedProduct

_MASKED = -1e9
_slice, _tile = ops.Slice(), ops.Tile()
_QUERY_BLOCK = 256
_WINDOW_BLOCK = 16
_WINDOW_BLOCKS = 8


def query_block(row_length: int, width: int) -> int:
    """Queries that share a window of ``width`` keys: an eighth of it, so that each key is copied eight times and few
    are looked at in vain; not below 16, where products would be too small."""
    return math.gcd(row_length, max(_WINDOW_BLOCK, width // _WINDOW_BLOCKS))


def window_of(longest: int, row_length: int, bound: int | None = None) -> Array | None:
    """How far back attention must look where no kernel skips other segments, as the network takes it.

    Packed rows hold many short samples, and most pairs of positions in a row belong to different ones. With queries in
    blocks, no key further back than the longest sample is touched.

    Args:
        longest: tokens of the longest sample in the rows.
        row_length: positions a row.
        bound: tokens that samples of other rows may have. Where looking that far costs at most twice as much, these
            rows do so too: it takes less time than compiling another graph.

    Returns:
        [W] int32, 0..W - 1; W is one of few, so that few graphs are compiled. None: dense attention is no slower.
    """
    width, shared = (_width(n, row_length) for n in (longest, max(longest, bound or 0)))
    width = shared if shared <= 2 * width else width
    return None if width == row_length else np.arange(width, dtype=np.int32)


def _width(longest: int, row_length: int) -> int:
    """Keys that a query is compared with: all, or those of a window."""
    width = 4 * _WINDOW_BLOCK
    while width - query_block(row_length, width) + 1 < longest:
        width *= 2
    return row_length if row_length % _WINDOW_BLOCK or 2 * width > row_length else width


def _windows(segments: ms.Tensor, back: int) -> ms.Tensor:
    """[B, blocks, Q] -> [B, blocks, (back + 1) Q]: each block with the ``back`` blocks before it. What lies before the
    row is of no segment."""
    shape = segments.shape
    padded = ops.concat((ops.full((shape[0], back, shape[2]), -2, dtype=segments.dtype), segments), 1)
    # The primitive, because indexing a tensor takes the graph compiler long.
    return ops.concat(tuple(_slice(padded, (0, i, 0), shape) for i in range(back + 1)), 2)


@ops.constexpr
def _copies(rows: int, blocks: int, back: int) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
    return _copy_tables(rows, blocks, back)  # all layers share them


@lru_cache
def _copy_tables(rows: int, blocks: int, back: int) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
    """Windows of rows in blocks: each block with the ``back`` blocks before it, C = ``back`` + 1 in all.

    Returns:
        ``copied`` [rows · blocks · C], the block that stands at each place of the windows (before a row, where nothing
        is seen, its first); ``places`` [rows · blocks · C], where the C copies of each block stand; ``exists``
        [rows · blocks, 1, C], float32: 1 where there is such a copy, 0 where it would be behind the row's end.
    """
    row, block, place = np.ogrid[:rows, :blocks, : back + 1]
    copied = row * blocks + np.maximum(block + place - back, 0)
    holder = block + back - place  # the block in whose window the copy stands
    places = (row * blocks + np.minimum(holder, blocks - 1)) * (back + 1) + place
    exists = np.broadcast_to(holder < blocks, places.shape).reshape(-1, 1, back + 1)
    copied, places = (ms.Tensor(x.reshape(-1).astype(np.int32)) for x in (copied, places))
    return copied, places, ms.Tensor(exists.astype(np.float32))


def _additive(seen: ms.Tensor) -> ms.Tensor:
    return (1.0 - seen.astype(ms.float32)) * _MASKED


class DenseMask(nn.Cell):
    """Additive mask, float32: 0 where a position may look, else -1e9.

    segment_ids [B, S], S <= row_length -> [B, 1, S, S]; with a window of W positions [B, S / Q, Q, W], for queries in
    blocks of Q = ``query_block(S, W)``, whose keys are the W positions up to the block's end.
    """

    def __init__(self, row_length: int):
        super().__init__()
        self.position = ops.arange(row_length)

    def construct(self, segment_ids: ms.Tensor, window: ms.Tensor | None = None) -> tuple[ms.Tensor, None]:
        length = segment_ids.shape[1]
        if window is None:
            position = _slice(self.position, (0,), (length,))
            causal = position.reshape(1, -1, 1) >= position.reshape(1, 1, -1)
            same = segment_ids.expand_dims(2) == segment_ids.expand_dims(1)
            return _additive(ops.logical_and(causal, same)).expand_dims(1), None
        width = window.shape[0]
        block = query_block(length, width)
        blocks = length // block
        own = segment_ids.reshape(-1, blocks, block)
        keys = _windows(own, width // block - 1)
        query = _slice(self.position, (0,), (block,)).reshape(1, 1, -1, 1) + (width - block)
        causal = query >= window.reshape(1, 1, 1, -1)
        return _additive(ops.logical_and(causal, own.expand_dims(3) == keys.expand_dims(2))), None


@ops.constexpr
def _query_blocks(length: int) -> tuple[tuple[int, int], ...]:
    return tuple((start, min(start + _QUERY_BLOCK, length)) for start in range(0, length, _QUERY_BLOCK))


class _Attend(nn.Cell):
    """softmax(q kᵀ + mask) v, and gradients for which nothing but inputs and output is kept: the probabilities, the
    largest array of a layer, are made again (FlashAttention, arXiv:2205.14135, section 3.1). No sum over keys is taken:
    Σ_j p_j ∂p_j = out · ∂out = δ (its appendix B.4), and the product that makes ∂p takes δ from them as well:
    (∂out, -δ) (v, 1)ᵀ."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.by_keys, self.by_values = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.transposed, self.product = ops.BatchMatMul(transpose_a=True), ops.MatMul()
        self.softmax = ops.Softmax(-1)
        self.minus = ms.Tensor(np.full((size, 1), -1.0, np.float32))

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        """q [A, R, D]; k, v [A, W, D]; mask of A·R·W places -> [A, R, D]."""
        return self.by_values(self._probabilities(q, k, mask), v)

    def gradients(
        self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, mask: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        """Of q, k, v. One of the first two must wait for ``dout``, else the compiler would keep the probabilities of
        the forward pass."""
        p = self._probabilities(q, k, mask)
        minus = self.product((out * dout).reshape(-1, self.size), self.minus).reshape(*dout.shape[:2], 1)
        ones = ops.ones((*v.shape[:2], 1), v.dtype)
        ds = p * self.by_keys(ops.concat((dout, minus), 2), ops.concat((v, ones), 2))
        return self.by_values(ds, k), self.transposed(ds, q), self.transposed(p, dout)

    def _probabilities(self, q: ms.Tensor, k: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        s = self.by_keys(q, k)
        return self.softmax(s + mask.reshape(s.shape))


class _AttendBlocks(nn.Cell):
    """Attention block by block of queries, each to all keys up to its end."""

    def __init__(self, heads: int, groups: int, size: int):
        super().__init__()
        self.heads, self.groups, self.dim = heads, groups, size
        self.attend, self.move = _Attend(size), MoveRows()

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        """q [B, N, S, D]; k, v [B·G, S, D]; mask [B, 1, S, S] -> [S·B, N·D]."""
        batch, length = q.shape[0], q.shape[2]
        outs: tuple[ms.Tensor, ...] = ()
        for start, stop in _query_blocks(length):
            out = self.attend(self._queries(q, start, stop), *self._seen(k, v, stop), self._mask(mask, start, stop))
            outs += (out.reshape(batch, self.heads, stop - start, self.dim),)
        out = self.move(ops.concat(outs, 2), (batch, self.heads, length), (2, 0, 1))
        return out.reshape(-1, self.heads * self.dim)

    def bprop(
        self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, mask: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        q, k, v = ops.depend(q, dout), ops.depend(k, dout), ops.depend(v, dout)  # else the compiler would keep slices
        out, dout = self._by_heads(ops.depend(out, dout), q), self._by_heads(dout, q)
        blocks = _query_blocks(q.shape[2])
        dq, dk, dv = self._gradients(q, k, v, mask, out, dout, *blocks[0])
        dqs: tuple[ms.Tensor, ...] = (dq,)
        for start, stop in blocks[1:]:
            dq, dk_seen, dv_seen = self._gradients(q, k, v, mask, out, dout, start, stop)
            dqs += (dq,)
            rest = ops.zeros((k.shape[0], stop - start, self.dim), k.dtype)
            dk, dv = ops.concat((dk, rest), 1) + dk_seen, ops.concat((dv, rest), 1) + dv_seen
        return ops.concat(dqs, 2), dk, dv, ops.zeros_like(mask)

    def _gradients(
        self,
        q: ms.Tensor,
        k: ms.Tensor,
        v: ms.Tensor,
        mask: ms.Tensor,
        out: ms.Tensor,
        dout: ms.Tensor,
        start: int,
        stop: int,
    ) -> tuple[ms.Tensor, ...]:
        """dq of the block's queries, dk and dv of the keys up to its end."""
        own, seen = self._queries(q, start, stop), self._seen(k, v, stop)
        outs = self._queries(out, start, stop), self._queries(dout, start, stop)
        dq, dk, dv = self.attend.gradients(own, *seen, self._mask(mask, start, stop), *outs)
        return dq.reshape(q.shape[0], self.heads, -1, self.dim), dk, dv

    def _by_heads(self, x: ms.Tensor, q: ms.Tensor) -> ms.Tensor:
        """[S·B, N·D] -> [B, N, S, D]."""
        return self.move(x.reshape(-1, self.dim), (q.shape[2], q.shape[0], self.heads), (1, 2, 0)).reshape(q.shape)

    def _queries(self, x: ms.Tensor, start: int, stop: int) -> ms.Tensor:
        """[B, N, S, D] -> [B·G, (N/G)·(stop - start), D]; slices by the primitive: what indexing becomes is ten times
        as slow on the CPU."""
        block = _slice(x, (0, 0, start, 0), (x.shape[0], self.heads, stop - start, self.dim))
        return block.reshape(x.shape[0] * self.groups, -1, self.dim)

    def _seen(self, k: ms.Tensor, v: ms.Tensor, stop: int) -> tuple[ms.Tensor, ms.Tensor]:
        seen = k.shape[0], stop, self.dim
        return _slice(k, (0, 0, 0), seen), _slice(v, (0, 0, 0), seen)

    def _mask(self, mask: ms.Tensor, start: int, stop: int) -> ms.Tensor:
        """Adding arrays of one shape is faster than broadcasting on the CPU; all layers share the tiled mask."""
        return _tile(_slice(mask, (0, 0, start, 0), (mask.shape[0], 1, stop - start, stop)), (1, self.heads, 1, 1))


class _AttendWindows(nn.Cell):
    """Attention of blocks of queries, each to its window. Windows hold each key many times, so they are made again for
    the backward pass."""

    def __init__(self, heads: int, groups: int, size: int):
        super().__init__()
        self.heads, self.groups = heads, groups
        self.attend, self.move, self.take, self.sum = _Attend(size), MoveRows(), ops.Gather(), ops.BatchMatMul()

    def construct(
        self,
        q: ms.Tensor,
        k: ms.Tensor,
        v: ms.Tensor,
        mask: ms.Tensor,
        copied: ms.Tensor,
        places: ms.Tensor,
        exists: ms.Tensor,
    ) -> ms.Tensor:
        """q [A, R, D], A of B·G·blocks; k, v [A, Q, D]; mask [B, G, blocks, N/G, Q, W]; the rest as ``_copies`` makes
        it -> [S·B, N·D]."""
        wide = q.shape[0], -1, q.shape[2]
        out = self.attend(q, self.take(k, copied, 0).reshape(wide), self.take(v, copied, 0).reshape(wide), mask)
        out = self.move(out, mask.shape[:5], (2, 4, 0, 1, 3))
        return out.reshape(-1, self.heads * q.shape[2])

    def bprop(
        self,
        q: ms.Tensor,
        k: ms.Tensor,
        v: ms.Tensor,
        mask: ms.Tensor,
        copied: ms.Tensor,
        places: ms.Tensor,
        exists: ms.Tensor,
        out: ms.Tensor,
        dout: ms.Tensor,
    ) -> tuple[ms.Tensor, ...]:
        wide, flat = (q.shape[0], -1, q.shape[2]), (-1, k.shape[1] * k.shape[2])
        k, v = ops.depend(k, dout), ops.depend(v, dout)  # else the compiler would keep the first windows
        keys, values = self.take(k, copied, 0).reshape(wide), self.take(v, copied, 0).reshape(wide)
        out, dout = self._by_blocks(ops.depend(out, dout), q, mask), self._by_blocks(dout, q, mask)
        dq, dk, dv = self.attend.gradients(q, keys, values, mask, out, dout)
        # A block's copies side by side, and their sum as a product.
        copies = exists.shape[0], exists.shape[2], flat[1]
        dk = self.sum(exists, self.take(dk.reshape(flat), places, 0).reshape(copies)).reshape(k.shape)
        dv = self.sum(exists, self.take(dv.reshape(flat), places, 0).reshape(copies)).reshape(v.shape)
        nothing = ops.zeros_like(copied), ops.zeros_like(places), ops.zeros_like(exists)
        return dq, dk, dv, ops.zeros_like(mask), *nothing

    def _by_blocks(self, x: ms.Tensor, q: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        """[S·B, N·D] -> as q."""
        batch, groups, blocks, rep, rows = mask.shape[:5]
        moved = self.move(x.reshape(-1, q.shape[2]), (blocks, rows, batch, groups, rep), (2, 3, 0, 4, 1))
        return moved.reshape(q.shape)


class DenseCoreAttention(nn.Cell):
    """softmax(q kᵀ + mask) v with plain operators; queries come scaled.

    Query heads of a group are folded into the rows of one product, so keys and values are never repeated; queries go
    block by block against the keys up to the block's end, so scores stay small and the causal half is not computed.
    """

    def __init__(self, config: Any, layer_number: int):
        super().__init__()
        self.heads, self.groups, self.dim = config.num_attention_heads, config.num_query_groups, config.kv_channels
        sizes = self.heads, self.groups, self.dim
        self.attend_blocks, self.attend_windows, self.move = _AttendBlocks(*sizes), _AttendWindows(*sizes), MoveRows()

    def construct(self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, attention_mask: ms.Tensor) -> ms.Tensor:
        """query [S, B, N, D]; key, value [S, B, G, D]; attention_mask as ``DenseMask`` makes it -> [S, B, N·D]."""
        if attention_mask.shape[1] != 1:
            return self._windowed(query, key, value, attention_mask)
        length, batch = query.shape[0], query.shape[1]
        q = self.move(query, (length, batch, self.heads), (1, 2, 0)).reshape(batch, self.heads, length, self.dim)
        k, v = (
            self.move(x, (length, batch, self.groups), (1, 2, 0)).reshape(-1, length, self.dim) for x in (key, value)
        )
        return self.attend_blocks(q, k, v, attention_mask).reshape(length, batch, -1)

    def _windowed(self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        length, batch = query.shape[0], query.shape[1]
        blocks, rows, width = mask.shape[1:]
        rep = self.heads // self.groups
        q = self.move(query, (blocks, rows, batch, self.groups, rep), (2, 3, 0, 4, 1))
        k, v = (
            self.move(x, (blocks, rows, batch * self.groups), (2, 0, 1)).reshape(-1, rows, self.dim)
            for x in (key, value)
        )
        tiled = ops.tile(mask.reshape(batch, 1, blocks, 1, rows, width), (1, self.groups, 1, rep, 1, 1))
        copies = _copies(batch * self.groups, blocks, width // rows - 1)
        out = self.attend_windows(q.reshape(-1, rep * rows, self.dim), k, v, tiled, *copies)
        return out.reshape(length, batch, -1)


class RotaryTables(nn.Cell):
    """Cosines and sines for whole outputs of a layer's query-key-value projection, made once a pass for all layers.

    Args:
        angles: MindFormers' cell of the angles [S, B, 1, D].
        config: heads, groups and their size.
    """

    def __init__(self, angles: nn.Cell, config: Any):
        super().__init__()
        angles.outer = angles.outer_for_eod = OuterProduct()
        self.angles, self.groups = angles, config.num_query_groups
        self.repeats = config.num_attention_heads // config.num_query_groups
        self.scale = config.softmax_scale

    def construct(
        self, max_seq_len: int, offset: int = 0, position_ids: ms.Tensor | None = None
    ) -> tuple[ms.Tensor, ms.Tensor]:
        """Two [S·B·G·(N/G + 2), D]: rows of queries hold the softmax's scale as well, those of values 1 and 0."""
        angles, _ = self.angles(max_seq_len, offset, position_ids)
        cos, sin = ops.cos(angles), ops.sin(angles)
        return self._table(cos, ops.ones_like(cos)), self._table(sin, ops.zeros_like(sin))

    def _table(self, turned: ms.Tensor, still: ms.Tensor) -> ms.Tensor:
        queries = ops.tile(turned * self.scale, (1, 1, self.repeats, 1))
        group = ops.concat((queries, turned, still), 2)
        return ops.tile(group, (1, 1, self.groups, 1)).reshape(-1, turned.shape[-1])


class DenseSelfAttention(SelfAttention):
    """SelfAttention that turns queries and keys by ``RotaryTables`` and leaves keys and values unrepeated."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        half = self.head_dim // 2
        turn = np.zeros((self.head_dim, self.head_dim), np.float32)  # (a, b) @ turn = (-b, a)
        turn[half:, :half], turn[:half, half:] = -np.eye(half), np.eye(half)
        self.turn, self.product = ms.Tensor(turn), ops.MatMul()
        self.linear_proj.skip_bias_add = True
        self.qkv = NormedProduct()
        self.enter = getattr(self.linear_qkv, "enter", nn.Identity())  # what a share does before its product

    def construct(
        self,
        hidden_states: tuple[ms.Tensor, ...],
        attention_mask: ms.Tensor,
        key_value_states: None = None,
        rotary_pos_emb: Any = None,
        prefix_keys_values: None = None,
        actual_seq_len: None = None,
        sharded_key: None = None,
        sharded_value: None = None,
    ) -> tuple[ms.Tensor, None]:
        """hidden_states [S·B, H] with its sources, as ``SourcedNorm`` gives them -> [S·B, H]."""
        x, rows, factor, scale = hidden_states
        batch = attention_mask.shape[0]
        length = x.shape[0] // batch
        cos, sin = rotary_pos_emb
        # In float32 like the tables, whatever the layers compute in: products take operands of one type.
        flat = self.qkv(self.enter(x), rows, factor, scale, self.linear_qkv.weight)
        flat = self._biased(flat, self.linear_qkv.bias).reshape(-1, self.head_dim).astype(ms.float32)
        if self.q_layernorm is not None:
            flat = self._normed(flat)
        turned = flat * cos + self.product(flat, self.turn) * sin
        turned = turned.reshape(length, batch, self.kv_num_heads, self.n_rep + 2, self.head_dim)
        query, key, value = self.split_qkv(turned, (self.n_rep, 1, 1), 3)
        context = self.core_attention(
            query.reshape(length, batch, self.num_heads, self.head_dim),
            key.squeeze(3),
            value.squeeze(3),
            attention_mask,
        ).astype(x.dtype)
        context = context.reshape(-1, self.num_heads * self.head_dim)
        return self._biased(*self.linear_proj(context)), None

    def _normed(self, flat: ms.Tensor) -> ms.Tensor:
        """[S·B·G·(N/G + 2), D]: queries and keys normalised, values as they are."""
        query, key, value = self.split_qkv(flat.reshape(-1, self.n_rep + 2, self.head_dim), (self.n_rep, 1, 1), 1)
        return ops.concat((self.q_layernorm(query), self.k_layernorm(key), value), 1).reshape(-1, self.head_dim)

    def _biased(self, x: ms.Tensor, bias: ms.Tensor | None) -> ms.Tensor:
        """x [S·B, n] + bias [n], if the projection has one that it has not added itself."""
        if bias is None:
            return x
        return x + self.product(ops.ones((x.shape[0], 1), x.dtype), bias.reshape(1, -1).astype(x.dtype))


class OuterProduct(nn.Cell):
    """Positions times inverse frequencies; MindFormers' own has no CPU kernel."""

    def construct(self, positions: ms.Tensor, frequencies: ms.Tensor) -> ms.Tensor:
        return positions.astype(ms.float32).reshape(-1, 1) * frequencies.reshape(1, -1)
