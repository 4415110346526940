"""RMS norm by products against its formula."""

from types import SimpleNamespace

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.models.norm import ProductNorm  # noqa: E402

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
