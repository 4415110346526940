"""RMS norm by products against its formula."""

from types import SimpleNamespace

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.models.norm import NormedProduct, ProductNorm, SourcedNorm  # noqa: E402

pytestmark = pytest.mark.mindspore
DIM, EPS = 24, 1e-5


def formula(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def test_values_and_gradients():
    rng = np.random.default_rng(0)
    x, up = rng.standard_normal((2, 5, 3, DIM)).astype(np.float32)
    x[0] *= 1e-3  # where epsilon counts
    weight = rng.standard_normal(DIM).astype(np.float32)
    norm = ProductNorm(SimpleNamespace(params_dtype=ms.float32), DIM, EPS)
    norm.weight.set_data(ms.Tensor(weight))
    np.testing.assert_allclose(norm(ms.Tensor(x)).asnumpy(), formula(x, weight), rtol=1e-5, atol=1e-6)

    class Loss(ms.nn.Cell):
        def __init__(self):
            super().__init__()
            self.norm, self.up = norm, ms.Tensor(up)

        def construct(self, x):
            return (self.norm(x) * self.up).sum()

    dx, (dw,) = ms.grad(Loss(), 0, [norm.weight])(ms.Tensor(x))
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    root = np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    g = up * weight
    expected = g / root - x * (g * x).mean(-1, keepdims=True) / root**3
    np.testing.assert_allclose(dx.asnumpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(dw.asnumpy(), (up * x / root).sum((0, 1)), rtol=1e-4, atol=1e-5)


class Projection(ms.nn.Cell):
    """A norm, then a product with a weight, and gradients of the weighted sum of what comes out."""

    def __init__(self, norm, up):
        super().__init__()
        self.norm, self.product = norm, NormedProduct()
        self.up = ms.Parameter(up)  # a constant would be nothing to wait for
        self.both = ms.value_and_grad(self.loss, (0, 1), [norm.weight])

    def loss(self, x, weight):
        out = self.norm(x)
        return (self.product(out[0], out[1], out[2], out[3], weight) * self.up).sum()

    def construct(self, x, weight):
        return self.both(x, weight)


def test_a_product_of_a_norm_keeps_its_gradients(tmp_path):
    rng = np.random.default_rng(1)
    x, weight, up = (rng.standard_normal(s).astype(np.float32) for s in ((7, DIM), (5, DIM), (7, 5)))
    scale = rng.standard_normal(DIM).astype(np.float32)
    norm = SourcedNorm(SimpleNamespace(params_dtype=ms.float32), DIM, EPS)
    norm.weight.set_data(ms.Tensor(scale))
    cell = Projection(norm, up)
    ms.set_context(save_graphs=2, save_graphs_path=str(tmp_path))
    try:
        cell.compile(ms.Tensor(x), ms.Tensor(weight))
    finally:
        ms.set_context(save_graphs=0)
    _, ((dx, dweight), (dscale,)) = cell(ms.Tensor(x), ms.Tensor(weight))
    x, weight, up, scale = (a.astype(np.float64) for a in (x, weight, up, scale))
    root = np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    back = up @ weight
    g = back * scale
    expected = g / root - x * (g * x).mean(-1, keepdims=True) / root**3
    np.testing.assert_allclose(dx.asnumpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(dweight.asnumpy(), up.T @ formula(x, scale), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dscale.asnumpy(), (back * x / root).sum(0), rtol=1e-4, atol=1e-4)
    # Forward: mean, scale, product. Backward: dx and dweight of the product, scale again; scale, share (2), dscale.
    graphs = [p.read_text() for p in tmp_path.rglob("hwopt_end*.ir")]
    assert max(text.count("PrimFunc_MatMul(") for text in graphs) == 3 + 3 + 4
