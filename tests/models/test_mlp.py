"""SwiGLU with a backward pass of its own against its formula."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.models.device_modules import GatedProducts  # noqa: E402

pytestmark = pytest.mark.mindspore


class Loss(ms.nn.Cell):
    """Value and gradients of the weighted sum of what the cell gives."""

    def __init__(self, factors):
        super().__init__()
        self.cell, self.factors = GatedProducts(), factors
        self.both = ms.value_and_grad(self.loss, (0, 1, 2))

    def loss(self, x, weight, down):
        return (self.cell(x, weight, down)[0] * self.factors).sum()

    def construct(self, x, weight, down):
        return self.both(x, weight, down)


@pytest.mark.parametrize("rows,size,inner", [(7, 12, 20), (33, 16, 40)])
def test_values_and_gradients(rows, size, inner):
    rng = np.random.default_rng(rows)
    shapes = (rows, size), (2 * inner, size), (size, inner), (rows, size)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    value, found = Loss(ms.Tensor(arrays[3]))(*(ms.Tensor(a) for a in arrays[:3]))
    x, weight, down, factors = (a.astype(np.float64) for a in arrays)
    gate, up = x @ weight[:inner].T, x @ weight[inner:].T
    sigmoid = 1 / (1 + np.exp(-gate))
    product = gate * sigmoid * up
    assert float(value.asnumpy()) == pytest.approx((product @ down.T * factors).sum(), rel=1e-4, abs=1e-3)
    back = factors @ down
    d = np.concatenate([back * up * sigmoid * (1 + gate * (1 - sigmoid)), back * gate * sigmoid], 1)
    for mine, want in zip(found, (d @ weight, d.T @ x, factors.T @ product), strict=True):
        np.testing.assert_allclose(mine.asnumpy(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
