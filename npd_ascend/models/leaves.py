"""The few modules of the network that differ between CPU and Ascend.

MindFormers' leaves call kernels that exist on Ascend alone. Everything else of its GPTModel runs on both devices, so
this table is all there is of device-specific network code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.training_graph.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention
from mindformers.parallel_core.training_graph.transformer.flash_attention import FlashAttention
from mindformers.parallel_core.training_graph.transformer.mlp import MLP, MLPInterleaved
from mindformers.parallel_core.training_graph.transformer.norm import FusedRMSNorm, RMSNorm
from mindspore import nn, ops

from npd_ascend.models.peers import Enter, Leave, Peers
from npd_ascend.models.vocabulary import OwnIds

MAX_SEGMENTS = 1024
"""Segments that one Ascend forward pass tells the flash kernel apart, padding tails included. CANN's kernel takes 2,048
cumulative ends, empty segments among them (aclnnFlashAttentionVarLenScore); MindSpore 2.9.0 documents 1,024."""
_MASKED = -1e9
_slice = ops.Slice()
_QUERY_BLOCK = 256
_WINDOW_BLOCK = 16


def query_block(row_length: int) -> int:
    """Queries that share a window of keys."""
    return math.gcd(row_length, _WINDOW_BLOCK)


def window_of(longest: int, row_length: int) -> np.ndarray | None:
    """How far back attention must look where no kernel skips other segments, as the network wants to be told.

    Packed rows hold many short samples, and most pairs of positions in a row belong to different ones. With queries in
    blocks, no key further back than the longest sample is touched.

    Args:
        longest: tokens of the longest sample in the rows.
        row_length: positions a row.

    Returns:
        [W] int32, 0..W - 1; W is one of few, so that few graphs are compiled. None: dense attention is no slower.
    """
    block = query_block(row_length)
    width = 4 * block
    while width - block + 1 < longest:
        width *= 2
    if block < _WINDOW_BLOCK or 2 * width > row_length:
        return None
    return np.arange(width, dtype=np.int32)


def _windows(x: ms.Tensor, back: int, before: int) -> ms.Tensor:
    """[A, blocks, Q, ...] -> [A, blocks, (back + 1) Q, ...]: each block with the ``back`` blocks before it."""
    shape = x.shape
    padded = ops.concat((ops.full((shape[0], back, *shape[2:]), before, dtype=x.dtype), x), 1)
    # The primitive, because indexing a tensor takes the graph compiler long.
    start = (0,) * (len(shape) - 2)
    return ops.concat(tuple(_slice(padded, (0, i, *start), shape) for i in range(back + 1)), 2)


def _additive(seen: ms.Tensor) -> ms.Tensor:
    return (1.0 - seen.astype(ms.float32)) * _MASKED


class DenseMask(nn.Cell):
    """Additive mask, float32: 0 where a position may look, else -1e9.

    segment_ids [B, S], S <= row_length -> [B, 1, S, S]; with a window of W positions [B, S / Q, Q, W], for queries in
    blocks of Q = ``query_block(S)``, whose keys are the W positions up to the block's end.
    """

    def __init__(self, row_length: int):
        super().__init__()
        self.position = ops.arange(row_length)

    def construct(self, segment_ids: ms.Tensor, window: ms.Tensor | None = None) -> tuple[ms.Tensor, None]:
        length = segment_ids.shape[1]
        position = self.position[:length]
        if window is None:
            causal = position.reshape(1, -1, 1) >= position.reshape(1, 1, -1)
            same = segment_ids.expand_dims(2) == segment_ids.expand_dims(1)
            return _additive(ops.logical_and(causal, same)).expand_dims(1), None
        block, width = query_block(length), window.shape[0]
        blocks = length // block
        own = segment_ids.reshape(-1, blocks, block)
        keys = _windows(own, width // block - 1, -2)  # what lies before the row is of no segment
        causal = position[:block].reshape(1, 1, -1, 1) + (width - block) >= window.reshape(1, 1, 1, -1)
        return _additive(ops.logical_and(causal, own.expand_dims(3) == keys.expand_dims(2))), None


class SegmentEnds(nn.Cell):
    """segment_ids [B, S] -> cumulative ends of the segments over the B·S tokens, for the flash kernel's TND layout.

    [MAX_SEGMENTS] int64, ascending; unused places repeat B·S, which the kernel reads as empty segments. A row's end
    always ends a segment, its padding is one segment.
    """

    def construct(self, segment_ids: ms.Tensor, window: ms.Tensor | None = None) -> tuple[None, ms.Tensor]:
        batch, length = segment_ids.shape
        total = batch * length
        last = ops.ones((batch, 1), ms.bool_)
        ends_here = ops.concat((segment_ids[:, 1:] != segment_ids[:, :-1], last), 1).reshape(-1)
        after = ops.arange(1, total + 1).astype(ms.float32)
        ends, _ = ops.sort(ops.select(ends_here, after, ops.full_like(after, float(total))))
        return None, ends[:min(total, MAX_SEGMENTS)].astype(ms.int64)


class DenseCoreAttention(nn.Cell):
    """softmax(q kᵀ / √d + mask) v with plain operators.

    Query heads of a group are folded into the rows of one product, so keys and values are never repeated; queries go
    block by block against the keys up to the block's end, so scores stay small and the causal half is not computed.
    """

    def __init__(self, config: Any, layer_number: int):
        super().__init__()
        self.heads, self.groups, self.dim = config.num_attention_heads, config.num_query_groups, config.kv_channels
        self.scale = 1.0 / math.sqrt(self.dim)
        self.scores, self.mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def construct(self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, attention_mask: ms.Tensor) -> ms.Tensor:
        """query [S, B, N, D]; key, value [S, B, G, D]; attention_mask as ``DenseMask`` makes it -> [S, B, N·D]."""
        if attention_mask.shape[1] != 1:
            return self._windowed(query, key, value, attention_mask)
        length, batch = query.shape[0], query.shape[1]
        rep = self.heads // self.groups
        q = query.transpose(1, 2, 0, 3) * self.scale
        k = key.transpose(1, 2, 0, 3).reshape(batch * self.groups, length, self.dim)
        v = value.transpose(1, 2, 0, 3).reshape(batch * self.groups, length, self.dim)
        outs: tuple[ms.Tensor, ...] = ()
        for start in range(0, length, _QUERY_BLOCK):
            stop = min(start + _QUERY_BLOCK, length)
            rows = stop - start
            block = q[:, :, start:stop].reshape(batch * self.groups, rep * rows, self.dim)
            s = self.scores(block, k[:, :stop]).reshape(batch, self.heads, rows, stop)
            # Adding arrays of one shape is faster than broadcasting on the CPU; all layers share the tiled mask.
            mask = ops.tile(attention_mask[:, :, start:stop, :stop], (1, self.heads, 1, 1))
            p = self.softmax(s + mask)
            out = self.mix(p.reshape(batch * self.groups, rep * rows, stop), v[:, :stop])
            outs += (out.reshape(batch, self.heads, rows, self.dim),)
        merged = outs[0] if len(outs) == 1 else ops.concat(outs, 2)
        return merged.transpose(2, 0, 1, 3).reshape(length, batch, self.heads * self.dim)

    def _windowed(self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        length, batch = query.shape[0], query.shape[1]
        blocks, rows, width = mask.shape[1:]
        rep = self.heads // self.groups
        q = (query * self.scale).reshape(blocks, rows, batch, self.groups, rep, self.dim)
        q = q.transpose(2, 3, 0, 4, 1, 5).reshape(batch * self.groups * blocks, rep * rows, self.dim)
        k, v = self._keys(key, blocks, rows, width), self._keys(value, blocks, rows, width)
        s = self.scores(q, k).reshape(batch, self.groups, blocks, rep, rows, width)
        tiled = ops.tile(mask.reshape(batch, 1, blocks, 1, rows, width), (1, self.groups, 1, rep, 1, 1))
        p = self.softmax(s + tiled).reshape(batch * self.groups * blocks, rep * rows, width)
        out = self.mix(p, v).reshape(batch, self.groups, blocks, rep, rows, self.dim)
        return out.transpose(2, 4, 0, 1, 3, 5).reshape(length, batch, self.heads * self.dim)

    def _keys(self, x: ms.Tensor, blocks: int, rows: int, width: int) -> ms.Tensor:
        """[S, B, G, D] -> [B·G·blocks, W, D]."""
        batch = x.shape[1]
        x = x.reshape(blocks, rows, batch * self.groups, self.dim).transpose(2, 0, 1, 3)
        return _windows(x, width // rows - 1, 0).reshape(-1, width, self.dim)


class DenseSelfAttention(SelfAttention):
    """SelfAttention whose keys and values stay unrepeated for ``DenseCoreAttention``."""

    def _repeat_kv(self, x: ms.Tensor, rep: int) -> ms.Tensor:
        return x


class BiasedProjection(RowParallelLinear):
    """Attention output projection with a bias; in MindFormers a flag shared with the MLP decides, which has none."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "bias": True, "skip_bias_add": False})


class ColumnShare(ColumnParallelLinear):
    """This rank's output columns of a projection; its input is whole."""

    def __init__(self, *args: Any, peers: Peers, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "skip_bias_add": False})
        self.enter = Enter(peers)

    def construct(self, input_: ms.Tensor) -> tuple[ms.Tensor, None]:
        """input_ [S, B, in] -> [S, B, out / size]."""
        x, weight = self.enter(input_), self.cast(self.weight, self.compute_dtype)
        if self.has_bias:
            return self.morphed_forward_with_bias(x, weight, self.cast(self.bias, self.compute_dtype)), None
        return self.morphed_forward(x, weight), None


class RowShare(RowParallelLinear):
    """This rank's input columns of a projection, summed over the ranks; the bias, if any, is added once."""

    def __init__(self, *args: Any, peers: Peers, biased: bool, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "bias": biased, "skip_bias_add": True})
        self.leave = Leave(peers)

    def construct(self, input_: ms.Tensor) -> tuple[ms.Tensor, None]:
        """input_ [S, B, in / size] -> [S, B, out]."""
        out = self.leave(self.morphed_forward(input_, self.cast(self.weight, self.compute_dtype)))
        return (out + self.cast(self.bias, out.dtype) if self.has_bias else out), None


class EmbeddingShare(nn.Cell):
    """Lookup in a table whose rows are cut over the ranks."""

    def __init__(self, peers: Peers):
        super().__init__()
        self.own, self.leave = OwnIds(peers), Leave(peers)

    def construct(self, ids: ms.Tensor, table: ms.Tensor) -> ms.Tensor:
        """ids [B, S], table [V / size, H] -> [B, S, H]."""
        row, mine = self.own(ids, table.shape[0])
        return self.leave(ops.gather(table, row, 0) * mine.expand_dims(-1).astype(table.dtype))


class GatherEmbedding(nn.Cell):
    """Rows of the embedding table; MindFormers' own lookup has no CPU kernel."""

    def construct(self, ids: ms.Tensor, table: ms.Tensor) -> ms.Tensor:
        return ops.gather(table, ids, 0)


class OuterProduct(nn.Cell):
    """Positions times inverse frequencies; MindFormers' own has no CPU kernel."""

    def construct(self, positions: ms.Tensor, frequencies: ms.Tensor) -> ms.Tensor:
        return positions.astype(ms.float32).reshape(-1, 1) * frequencies.reshape(1, -1)


@dataclass(frozen=True)
class Leaves:
    """Device-specific parts.

    Attributes:
        norm: class of every RMS norm.
        self_attention, core_attention, mlp: classes inside a layer.
        interleaved: whether the MLP wants gate and up rows in turn, so that a tensor-parallel slice holds both; one
            behind the other is faster on the CPU.
        flash: whether flash attention with cumulative segment ends is used in place of a dense mask.
        config: settings of MindFormers' TransformerConfig that go with them.
    """

    norm: type
    self_attention: type
    core_attention: type
    mlp: type
    interleaved: bool
    flash: bool
    config: dict[str, Any]

    def patch(self, model: Any, peers: Peers) -> None:
        """Replaces inside a built GPTModel what its specification cannot name."""
        words = model.embedding.word_embeddings
        if peers.size > 1:
            words.embedding_morph = EmbeddingShare(peers)
        elif not self.flash:
            words.embedding_morph = GatherEmbedding()
        if not self.flash:
            model.rotary_pos_emb.outer = model.rotary_pos_emb.outer_for_eod = OuterProduct()

    def mask(self, row_length: int) -> nn.Cell:
        """Cell: segment_ids -> (attention mask, cumulative segment ends), one of them None."""
        return SegmentEnds() if self.flash else DenseMask(row_length)


LEAVES = {
    "cpu": Leaves(RMSNorm, DenseSelfAttention, DenseCoreAttention, MLP, interleaved=False, flash=False,
                  config={"use_flash_attention": False, "hidden_act": "silu"}),
    "ascend": Leaves(FusedRMSNorm, SelfAttention, FlashAttention, MLPInterleaved, interleaved=True, flash=True,
                     config={"use_flash_attention": True, "use_eod_attn_mask_compression": True,
                             "hidden_act": "swiglu", "bias_swiglu_fusion": True}),
}
