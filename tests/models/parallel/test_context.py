"""Ranks that share the positions of rows attend as one process does over the whole rows: values and gradients."""

import pytest

pytest.importorskip("mindspore")

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
RANK = """
from types import SimpleNamespace
import mindspore as ms
import numpy as np
from npd_ascend.config.job import Device
from npd_ascend.models.attention import DenseCoreAttention, DenseMask
from npd_ascend.models.parallel.context import WholeRows
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.parallel.collectives import AllToAll

B, S, N, G, D = 2, 32, 8, 4, 4
mesh = DeviceMesh(Device(), context_parallel=2)
if mesh.schedules:
    raise SystemExit
group = mesh.context
assert (group.rank, group.size, mesh.replicas.size, mesh.data.size) == (mesh.rank, 2, 2, 1)
block = np.arange(6, dtype=np.float32).reshape(2, 3)
got = AllToAll(group)(ms.Tensor(block + 10 * group.rank)).asnumpy()
np.testing.assert_array_equal(got, [block[group.rank], block[group.rank] + 10])


class Flat(ms.nn.Cell):
    # Called as the flash kernel is: all positions of a row, then those of the next; told of segments aside.
    def __init__(self, config, layer_number):
        super().__init__()
        self.core, self.mask = DenseCoreAttention(config, layer_number), DenseMask(S)

    def construct(self, query, key, value, attention_mask, actual_seq_qlen=None, actual_seq_kvlen=None):
        mask, _ = self.mask(actual_seq_qlen)
        query, key, value = (x.reshape(B, S, -1, D).transpose(1, 0, 2, 3) for x in (query, key, value))
        return self.core(query, key, value, mask).transpose(1, 0, 2).reshape(B * S, -1, D)


class Differentiate(ms.nn.Cell):
    def __init__(self, core, weight):
        super().__init__()
        self.core, self.weight = core, ms.Tensor(weight)
        self.go = ms.grad(self.total, (0, 1, 2))

    def attend(self, query, key, value, mask, segments):
        if segments is None:
            return self.core(query, key, value, mask)
        return self.core(query, key, value, mask, actual_seq_qlen=segments)

    def total(self, *inputs):
        return (self.attend(*inputs) * self.weight).sum()

    def construct(self, query, key, value, mask, segments):
        return self.attend(query, key, value, mask, segments), self.go(query, key, value, mask, segments)


rng = np.random.default_rng(0)
arrays = [rng.standard_normal((S, B, n, D)).astype(np.float32) for n in (N, G, G)]
weight = rng.standard_normal((S, B, N * D)).astype(np.float32)
segments = ms.Tensor(np.sort(rng.integers(0, 4, (B, S)), 1).astype(np.int32))
mask, _ = DenseMask(S)(segments)
own = slice(group.rank * S // 2, (group.rank + 1) * S // 2)


def attention(flash, core):
    heads = dict(num_attention_heads=N, num_query_groups=G, kv_channels=D, use_flash_attention=flash)
    return WholeRows(SimpleNamespace(**heads), 1, core=core, group=group, length=S // 2)


def flat(x):
    return np.ascontiguousarray(x.swapaxes(0, 1)).reshape(-1, *x.shape[2:])


def check(core, inputs, weight, tell, of=lambda x: x):
    out, gradients = Differentiate(core, weight)(*(ms.Tensor(x) for x in inputs), *tell)
    for mine, want in zip((out, *gradients), expected):
        want = of(want)
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(mine.asnumpy().reshape(want.shape), want, rtol=0, atol=1e-5)


alone = DenseCoreAttention(SimpleNamespace(num_attention_heads=N, num_query_groups=G, kv_channels=D), 1)
out, gradients = Differentiate(alone, weight)(*(ms.Tensor(x) for x in arrays), mask, None)
expected = [x.asnumpy()[own] for x in (out, *gradients)]
mine = [x[own] for x in arrays]
check(attention(False, DenseCoreAttention), mine, weight[own], (mask, None))
check(attention(True, Flat), [flat(x) for x in mine], flat(weight[own]).reshape(-1, N, D), (None, segments), flat)
"""


def test_two_ranks_attend_over_whole_rows(under_msrun):
    """In the layout of the dense core attention, and in that of the flash kernel."""
    under_msrun(2, RANK, seconds=300)
