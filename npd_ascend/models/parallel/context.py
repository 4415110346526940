"""Attention where each process holds a run of the positions of every row (DeepSpeed-Ulysses, arXiv:2309.14509)."""

from __future__ import annotations

from copy import copy
from typing import Any

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from npd_ascend.models.parallel.collectives import AllToAll, ProcessGroup


class WholeRows(nn.Cell):
    """A core attention over whole rows with a part of the heads, between two exchanges: outside them a rank has all
    heads of its own positions, inside all positions of its own heads.

    It takes and gives what the core attention would: [S, B, N, D], or [B·S, N, D] for the flash kernel (TND).

    Args:
        config: MindFormers' TransformerConfig, with the heads that a rank has before the exchange.
        layer_number: of the layer.
        core: class of the core attention.
        group: the context-parallel group.
        length: own positions a row.
    """

    def __init__(self, config: Any, layer_number: int, *, core: type, group: ProcessGroup, length: int):
        super().__init__()
        self.size, self.length, self.dim = group.size, length, config.kv_channels
        self.flash = config.use_flash_attention
        own = copy(config)
        own.num_attention_heads //= group.size
        own.num_query_groups //= group.size
        self.heads, self.groups = own.num_attention_heads, own.num_query_groups
        self.widths = (self.heads * self.dim, self.groups * self.dim, self.groups * self.dim)
        self.core = core(config=own, layer_number=layer_number)
        self.exchange, self.split = AllToAll(group), SplitWithSize()

    def construct(
        self,
        query: ms.Tensor,
        key: ms.Tensor,
        value: ms.Tensor,
        attention_mask: ms.Tensor | None,
        actual_seq_qlen: ms.Tensor | None = None,
        actual_seq_kvlen: ms.Tensor | None = None,
    ) -> ms.Tensor:
        """query, key, value of the own positions, mask or cumulative ends of the whole rows -> the own positions."""
        # Rows that stand one behind the other, and positions of a row's run; in [S, B] a run's rows lie inside it.
        rows = query.shape[0] // self.length if self.flash else 1
        run = self.length if self.flash else self.length * query.shape[1]
        # One exchange for all three: separate ones could meet in another order. Heads of a group stay together.
        parts = ops.concat(
            (self._by_peer(query, rows, run), self._by_peer(key, rows, run), self._by_peer(value, rows, run)), 3
        )
        whole = self.exchange(parts.transpose(2, 0, 1, 3)).transpose(1, 0, 2, 3)
        query, key, value = self.split(whole, self.widths, 3)
        shape = (-1,) if self.flash else (self.size * self.length, -1)
        query = query.reshape(shape + (self.heads, self.dim))
        key = key.reshape(shape + (self.groups, self.dim))
        value = value.reshape(shape + (self.groups, self.dim))
        if self.flash:
            out = self.core(
                query, key, value, attention_mask, actual_seq_qlen=actual_seq_qlen, actual_seq_kvlen=actual_seq_kvlen
            )
        else:
            out = self.core(query, key, value, attention_mask)
        out = out.reshape(rows, self.size, run, self.heads * self.dim)
        out = self.exchange(out.transpose(1, 0, 2, 3)).transpose(1, 2, 0, 3)
        return out.reshape(
            (rows * run, self.size * self.heads, self.dim)
            if self.flash
            else (self.length, -1, self.size * self.heads * self.dim)
        )

    def _by_peer(self, x: ms.Tensor, rows: int, run: int) -> ms.Tensor:
        """[..., heads of all, D] -> [rows, run, size, heads of one · D]."""
        return x.reshape(rows, run, self.size, -1)
