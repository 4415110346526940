"""Attention on the CPU: that of the definition, forward and backward, in windows or dense."""

from types import SimpleNamespace

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.models.attention import DenseCoreAttention, DenseMask, query_block, window_of  # noqa: E402
from npd_ascend.rows.collate import collate  # noqa: E402

pytestmark = pytest.mark.mindspore
ROWS, LENGTH, HEADS, GROUPS, DIM = 2, 512, 4, 2, 8


class Attention(ms.nn.Cell):
    """Output of attention, and gradients of its weighted sum."""

    def __init__(self, weight):
        super().__init__()
        self.mask = DenseMask(LENGTH)
        self.core = DenseCoreAttention(
            SimpleNamespace(num_attention_heads=HEADS, num_query_groups=GROUPS, kv_channels=DIM), 1
        )
        self.weight = weight
        self.differentiate = ms.grad(self.loss, (0, 1, 2))

    def loss(self, query, key, value, mask):
        return (self.core(query / DIM**0.5, key, value, mask) * self.weight).sum()

    def construct(self, query, key, value, segment_ids, window=None):
        mask, _ = self.mask(segment_ids, window)
        return self.core(query / DIM**0.5, key, value, mask), self.differentiate(query, key, value, mask)


def naive(query, key, value, segment):
    """[S, B, N * D] by the definition, position by position; zeros in padding."""
    out = np.zeros((LENGTH, ROWS, HEADS, DIM))
    for b in range(ROWS):
        for s in np.flatnonzero(segment[b] >= 0):
            seen = np.flatnonzero(segment[b, : s + 1] == segment[b, s])
            for n in range(HEADS):
                g = n // (HEADS // GROUPS)
                scores = key[seen, b, g] @ query[s, b, n] / np.sqrt(DIM)
                p = np.exp(scores - scores.max())
                out[s, b, n] = p / p.sum() @ value[seen, b, g]
    return out.reshape(LENGTH, ROWS, HEADS * DIM)


@pytest.mark.parametrize("longest, width", [(49, 64), (65, 128), (225, 256)])  # blocks of 16, 16 and 32 queries
def test_windows_change_nothing(longest, width):
    """Samples begin and end anywhere in a block; the longest reaches as far back as the window allows."""
    rng = np.random.default_rng(0)
    rows = [[], []]
    for part in rows:
        while sum(map(len, part)) + longest <= LENGTH - 20:
            part.append(np.zeros(longest if len(part) < 2 else int(rng.integers(1, longest + 1)), np.int32))
        rng.shuffle(part)
    batch = collate(rows, LENGTH, 0, ROWS)
    window = window_of(batch.longest, LENGTH)
    assert batch.longest == longest and len(window) == width
    query = rng.standard_normal((LENGTH, ROWS, HEADS, DIM)).astype(np.float32)
    key, value = rng.standard_normal((2, LENGTH, ROWS, GROUPS, DIM)).astype(np.float32)
    inside = (batch.segment_ids.T >= 0)[:, :, None]
    weight = rng.standard_normal((LENGTH, ROWS, HEADS * DIM)).astype(np.float32) * inside
    attention = Attention(ms.Tensor(weight))
    inputs = [ms.Tensor(x) for x in (query, key, value, batch.segment_ids)]
    dense, windowed = attention(*inputs), attention(*inputs, ms.Tensor(window))
    expected = naive(query, key, value, batch.segment_ids)
    for out, _ in (dense, windowed):
        np.testing.assert_allclose(out.asnumpy() * inside, expected, rtol=0, atol=1e-5)
    for a, b in zip(dense[1], windowed[1], strict=True):
        assert np.abs(a.asnumpy()).max() > 0.1
        np.testing.assert_allclose(b.asnumpy(), a.asnumpy(), rtol=0, atol=1e-5)
    # Along a direction, the gradient is the difference quotient of the definition in float64.
    arrays = [x.astype(np.float64) for x in (query, key, value)]
    for i, gradient in enumerate(windowed[1]):
        direction = rng.standard_normal(arrays[i].shape)
        moved = ([x + e * direction if j == i else x for j, x in enumerate(arrays)] for e in (1e-4, -1e-4))
        ahead, behind = ((naive(*inputs, batch.segment_ids) * weight).sum() for inputs in moved)
        assert (gradient.asnumpy() * direction).sum() == pytest.approx((ahead - behind) / 2e-4, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("window", [None, 64])
def test_the_backward_pass_makes_probabilities_again(tmp_path, window):
    """The compiler would take equal parts of both passes for one, and keep the largest array of a layer."""
    rng = np.random.default_rng(0)
    weight = np.ones((LENGTH, ROWS, HEADS * DIM), np.float32)
    attention = Attention(ms.Parameter(weight))  # a constant would be nothing to wait for
    shapes = (HEADS, DIM), (GROUPS, DIM), (GROUPS, DIM)
    inputs = [ms.Tensor(rng.standard_normal((LENGTH, ROWS, *s)).astype(np.float32)) for s in shapes]
    inputs.append(ms.Tensor(np.repeat(np.arange(LENGTH // 32, dtype=np.int32), 32)[None].repeat(ROWS, 0)))
    if window:
        inputs.append(ms.Tensor(np.arange(window, dtype=np.int32)))
    ms.set_context(save_graphs=2, save_graphs_path=str(tmp_path))
    try:
        attention.compile(*inputs)
    finally:
        ms.set_context(save_graphs=0)
    graphs = [p.read_text() for p in tmp_path.rglob("hwopt_end*.ir")]
    blocks = 1 if window else LENGTH // 256
    # The cell asks for the output beside the gradients; that pass and the gradients' own forward pass are one.
    assert max(text.count("PrimFunc_Softmax(") for text in graphs) == 2 * blocks


@pytest.mark.parametrize("row_length", [16, 48, 64, 100, 128, 512, 3072, 4096])
def test_windows_hold_the_longest_sample(row_length):
    """The first query of a block sees back over the longest sample, and windows save at least half."""
    widths = set()
    for longest in range(1, row_length + 1):
        window = window_of(longest, row_length)
        if window is None:
            continue
        width = len(window)
        block = query_block(row_length, width)
        assert width - block + 1 >= longest and width % block == 0 and row_length % block == 0
        assert 2 * width <= row_length
        widths.add(width)
    assert len(widths) <= 6 and bool(widths) == (row_length >= 128)


def test_a_bound_is_shared_where_that_costs_at_most_twice():
    def width(longest, row_length, bound=None):
        window = window_of(longest, row_length, bound)
        return row_length if window is None else len(window)

    assert width(37, 512) == 64 and width(78, 512) == 128
    assert width(37, 512, 78) == width(78, 512, 78) == 128
    assert width(37, 512, 200) == 64 and width(100, 512, 200) == width(200, 512) == 256
    assert width(37, 128, 100) == 128 and width(100, 512, 37) == 128
    assert width(37, 256, 250) == 64  # all of the row would cost four times as much
