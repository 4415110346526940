"""What CANN's kernels compute, spelt out with operators of the CPU, to take their places in the network for Ascend.

Semantics are those of the operators' documentation: aclnnFlashAttentionVarLenScore (TND, cumulative ends, sparse mode
3), aclnnRmsNorm, aclnnSwiGlu, aclnnRotaryPositionEmbedding, aclnnEmbedding, aclnnIndexSelect, aclnnScatterAdd,
aclnnTopk, and of HCCL's collectives. A kernel refuses types that its documentation does not name.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import mint, nn, ops
from mindspore.communication import get_group_size, get_rank

from npd_ascend.models import kernels

HALF = (ms.float16, ms.bfloat16)


class Flash(nn.Cell):
    """FlashAttentionScore in layout TND with cumulative ends, sparse mode 3: position i of a segment sees those j of
    the same segment for which the compressed mask [2048, 2048] holds 0 at [i, j], both counted within it.

    Args:
        kernel: the primitive whose place it takes; scale and layout are read from it.
        exact: inputs may be float32, which the kernel does not take.
    """

    def __init__(self, kernel, exact):
        super().__init__()
        assert kernel.input_layout in ("TND", 4), kernel.input_layout
        assert kernel.sparse_mode == 3 and kernel.keep_prob == 1.0
        self.scale, self.heads = kernel.scale_value, kernel.head_num
        self.types = HALF + (ms.float32,) * exact

    def construct(self, query, key, value, shift, drop, padding, mask, prefix, q_ends, kv_ends):
        """query [T, N, D], key and value [T, G, D], ends ascending up to T; empty segments may be among them."""
        assert query.dtype in self.types and key.dtype == query.dtype and value.dtype == query.dtype
        assert mask.shape == (2048, 2048) and mask.dtype == ms.uint8
        assert q_ends.dtype == ms.int64
        total, heads, groups = query.shape[0], query.shape[1], key.shape[1]
        assert heads == self.heads
        place = ops.arange(total).astype(ms.int32)
        ends = q_ends.astype(ms.int32)
        segment = (place.reshape(-1, 1) >= ends.reshape(1, -1)).astype(ms.int32).sum(1)
        start = ops.gather(ops.concat((ops.zeros((1,), ms.int32), ends)), segment, 0)
        inside = place - start
        rows = ops.gather(mask.astype(ms.float32), inside, 0)
        blocked = ops.gather(rows, inside, 1)
        other = (segment.reshape(-1, 1) != segment.reshape(1, -1)).astype(ms.float32)
        hidden = ops.maximum(blocked, other) * -1e30
        q = query.astype(ms.float32).transpose(1, 0, 2)
        k = ops.repeat_interleave(key.astype(ms.float32).transpose(1, 0, 2), heads // groups, 0)
        v = ops.repeat_interleave(value.astype(ms.float32).transpose(1, 0, 2), heads // groups, 0)
        p = ops.softmax(ops.matmul(q, k.transpose(0, 2, 1)) * self.scale + hidden, -1)
        out = ops.matmul(p, v).transpose(1, 0, 2).astype(query.dtype)
        return p, p, p, out


class RmsNorm(nn.Cell):
    """y = x / √(mean(x²) + ε) · γ, float32 in and out, with γ of the same type; and the factors."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def construct(self, x, gamma):
        assert x.dtype == ms.float32 and gamma.dtype == ms.float32
        factor = ops.rsqrt((x * x).mean(-1, keep_dims=True) + self.eps)
        return x * factor * gamma, factor


class Swiglu(nn.Cell):
    """x cut in halves A and B along an axis: A · sigmoid(A) · B."""

    def construct(self, x, dim):
        a, b = ops.split(x.astype(ms.float32), x.shape[dim] // 2, dim)
        return (a * ops.sigmoid(a) * b).astype(x.dtype)


class Outer(nn.Cell):
    """Outer product; numbers of one integral and one floating type give the floating one."""

    def construct(self, a, b):
        return a.astype(ms.float32).reshape(-1, 1) * b.reshape(1, -1)


class Embedding(nn.Cell):
    """Rows of a table by id; the gradient of a row is the sum over the places that asked for it."""

    def construct(self, ids, table):
        assert ids.dtype in (ms.int32, ms.int64)
        places = ops.one_hot(ids.reshape(-1), table.shape[0], ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32))
        return ops.matmul(places, table.astype(ms.float32)).astype(table.dtype).reshape(*ids.shape, table.shape[1])


def scatter_add(x, dim, index, source):
    """x with source [R, n] added at [r, index[r, c]] for every r and c, equal places included."""
    assert dim == 1 and index.dtype in (ms.int32, ms.int64) and source.dtype == x.dtype
    at = ops.one_hot(index, x.shape[1], ms.Tensor(1.0, x.dtype), ms.Tensor(0.0, x.dtype))
    return x + (at * source.expand_dims(-1)).sum(1)


def index_select(x, dim, index):
    """Rows of x by number, as a product, so that the gradient of a row is the sum over the places that asked for it."""
    assert dim == 0 and index.ndim == 1 and index.dtype in (ms.int32, ms.int64)
    places = ops.one_hot(index, x.shape[0], ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32))
    flat = x.reshape(x.shape[0], -1).astype(ms.float32)
    return ops.matmul(places, flat).astype(x.dtype).reshape(index.shape + x.shape[1:])


def topk(x, k, dim, largest, ordered):
    """The k largest along the last axis, largest first, with their places in 64 bits."""
    assert dim == -1 and largest and ordered
    values, places = ops.sort(x, -1, True)
    return values[:, :k], places[:, :k].astype(ms.int64)


class Slice(nn.Cell):
    """Places of an axis from start to end, end excluded."""

    def construct(self, x, dim, start, end, step):
        assert step == 1 and dim in (0, 1)
        return x[start:end] if dim == 0 else x[:, start:end]


class Rotary(nn.Cell):
    """RotaryPositionEmbedding, mode 0: x cos + rotated x sin, halves of the last axis exchanged, the second negated;
    x [S, B, N, D] with cosines [S, 1 or B, 1, D] of the same type."""

    def construct(self, x, cos, sin, mode):
        assert mode == 0 and cos.dtype == x.dtype and sin.dtype == x.dtype
        assert cos.shape[0] == x.shape[0] and cos.shape[2] == 1 and x.shape[3] % 2 == 0
        a, b = ops.split(x, x.shape[3] // 2, 3)
        return x * cos + ops.concat((-b, a), -1) * sin


def put_in_kernels(patch):
    """Lets cells of ``models.kernels`` be built as for Ascend, with references for what the CPU lacks.

    Args:
        patch: pytest's ``monkeypatch``.
    """
    patch.setattr(kernels, "on_ascend", lambda: True)
    patch.setattr(kernels, "SliceExt", Slice)
    for function in (scatter_add, index_select, topk):
        patch.setattr(mint, function.__name__, function)


def put_in(net, *, exact):
    """Puts the references in the places of all kernels of a network that was built with the table for Ascend.

    Args:
        net: a ``CausalLM``.
        exact: it computes in float32; the cast to float16 in front of the flash kernel, which bfloat16 does not take,
            is left out then.

    Returns:
        How many of each were replaced.
    """
    found: dict[str, int] = {}

    def replace(cell, name, kernel):
        setattr(cell, name, kernel)
        found[type(kernel).__name__] = found.get(type(kernel).__name__, 0) + 1

    for _, cell in net.cells_and_names():
        kind = type(cell).__name__
        if kind == "ScaledFlash":
            replace(cell, "flash_attention", Flash(cell.flash_attention, exact))
        elif kind == "FusedNorm":
            replace(cell, "norm", RmsNorm(cell.eps))
        elif kind == "FusedSwiGlu":
            replace(cell, "swiglu", Swiglu())
        elif kind == "ApplyRotaryPosEmb":
            replace(cell, "rope", Rotary())
        elif kind == "SelfAttention" and exact:
            cell.cast = _KeepFloat32()
    replace(net.model.rotary_pos_emb, "outer", Outer())
    replace(net.model.rotary_pos_emb, "outer_for_eod", Outer())
    words = net.model.embedding.word_embeddings
    if type(words.embedding_morph).__name__ == "Morph":
        replace(words, "embedding_morph", Embedding())
    return found


class _KeepFloat32(nn.Cell):
    def construct(self, x, dtype):
        return x if dtype == ms.float16 else x.astype(dtype)


class AllGather(nn.Cell):
    """HCCL's: what the ranks hold, one behind the other along the first axis."""

    def __init__(self, group):
        super().__init__()
        self.rank, self.size, self.reduce = get_rank(group), get_group_size(group), ops.AllReduce(group=group)

    def construct(self, x):
        parts = ()
        for i in range(self.size):
            parts += (x if i == self.rank else ops.zeros_like(x),)
        return self.reduce(ops.concat(parts))


class ReduceScatter(nn.Cell):
    """HCCL's: the sum over the ranks, of which each keeps its part of the first axis."""

    def __init__(self, group):
        super().__init__()
        self.rank, self.size, self.reduce = get_rank(group), get_group_size(group), ops.AllReduce(group=group)

    def construct(self, x):
        own = x.shape[0] // self.size
        return self.reduce(x)[self.rank * own : (self.rank + 1) * own]


class AlltoAll(nn.Cell):
    """HCCL's: cut along one axis into as many parts as there are ranks, part i to rank i; what comes is joined along
    another."""

    def __init__(self, split_count, split_dim, concat_dim, group):
        super().__init__()
        assert split_dim == concat_dim == 0
        self.all, self.rank, self.size = AllGather(group), get_rank(group), split_count

    def construct(self, x):
        whole = self.all(x).reshape(self.size, self.size, *(x.shape[0] // self.size, *x.shape[1:]))
        return whole[:, self.rank].reshape(x.shape)
