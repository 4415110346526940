"""SwiGLU with a backward pass of its own against its formula."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.models.device_modules import GatedProducts  # noqa: E402

pytestmark = pytest.mark.mindspore


class Loss(ms.nn.Cell):
    """Value and gradients of the weighted sum of what the cell gives."""

    def __init__(self):
        super().__init__()
        self.cell = GatedProducts()
        self.both = ms.value_and_grad(self.loss, (0, 4, 5))

    def loss(self, x, rows, factor, scale, weight, down, up):
        return (self.cell(x, rows, factor, scale, weight, down)[0] * up).sum()

    def construct(self, *inputs):
        return self.both(*inputs)


@pytest.mark.parametrize("rows,size,inner", [(7, 12, 20), (33, 16, 40)])
def test_values_and_gradients(rows, size, inner):
    rng = np.random.default_rng(rows)
    shapes = (rows, size), (rows, 1), (1, size), (2 * inner, size), (size, inner), (rows, size)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    x = arrays[0] * arrays[1] * arrays[2]
    value, found = Loss()(*(ms.Tensor(a) for a in (x, *arrays)))
    x, weight, down, factors = (a.astype(np.float64) for a in (x, *arrays[3:]))
    gate, up = x @ weight[:inner].T, x @ weight[inner:].T
    sigmoid = 1 / (1 + np.exp(-gate))
    product = gate * sigmoid * up
    assert float(value.asnumpy()) == pytest.approx((product @ down.T * factors).sum(), rel=1e-4, abs=1e-3)
    back = factors @ down
    d = np.concatenate([back * up * sigmoid * (1 + gate * (1 - sigmoid)), back * gate * sigmoid], 1)
    for mine, want in zip(found, (d @ weight, d.T @ x, factors.T @ product), strict=True):
        np.testing.assert_allclose(mine.asnumpy(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_the_backward_pass_computes_again_what_the_forward_pass_need_not_keep(tmp_path):
    """The compiler would take equal parts of both for one."""
    ms.set_context(save_graphs=2, save_graphs_path=str(tmp_path))
    try:
        shapes = (3, 4), (3, 4), (3, 1), (1, 4), (10, 4), (4, 5), (3, 4)
        Loss().compile(*(ms.Tensor(np.ones(s, np.float32)) for s in shapes))
    finally:
        ms.set_context(save_graphs=0)
    graphs = [p.read_text() for p in tmp_path.rglob("hwopt_end*.ir")]
    assert max(text.count("PrimFunc_Sigmoid(") for text in graphs) == 2
