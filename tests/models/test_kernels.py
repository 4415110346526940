"""The operators that differ by device: those of the CPU, and what is asked of those of Ascend with plain references in
their places."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import mint, nn, ops  # noqa: E402

from npd_ascend.models import kernels  # noqa: E402
from npd_ascend.models.kernels import AddAt, InPlace, Largest, MoveRows, Part, TakeRows  # noqa: E402
from tests.models import reference_kernels as reference  # noqa: E402

pytestmark = pytest.mark.mindspore


@pytest.fixture(params=["cpu", "ascend"])
def device(request, monkeypatch):
    """Cells that are built now are those of this device."""
    ms.set_context(mode=ms.GRAPH_MODE)
    if request.param == "ascend":
        reference.put_in_kernels(monkeypatch)
    return request.param


def test_equal_columns_add_up(device):
    """The label may be among the stored tokens."""
    rng = np.random.default_rng(3)
    x, index = rng.standard_normal((5, 11)).astype(np.float32), rng.integers(0, 11, (5, 4)).astype(np.int32)
    index[:, 2] = index[:, 0]
    values = rng.standard_normal((5, 4)).astype(np.float32)
    want = x.copy()
    for r in range(5):
        for c in range(4):
            want[r, index[r, c]] += values[r, c]
    np.testing.assert_allclose(AddAt()(*map(ms.Tensor, (x, index, values))).asnumpy(), want, atol=1e-6)


def test_rows_and_their_gradient(device):
    """A row that is taken twice has the sum of both gradients, one that is not taken none."""
    rng = np.random.default_rng(4)
    x, index = rng.standard_normal((5, 3)).astype(np.float32), np.array([4, 0, 4], np.int32)
    factor = rng.standard_normal((3, 3)).astype(np.float32)
    take, at, by = TakeRows(), ms.Tensor(index), ms.Tensor(factor)

    def function(x):
        return (take(x, at) * by).sum()

    value, gradient = ms.value_and_grad(function)(ms.Tensor(x))
    assert float(value) == pytest.approx(float((x[index] * factor).sum()), rel=1e-5)
    want = np.zeros_like(x)
    np.add.at(want, index, factor)
    np.testing.assert_allclose(gradient.asnumpy(), want, atol=1e-6)


@pytest.mark.parametrize("shape, axes", [((4, 3), (1, 0)), ((2, 3, 4, 2), (2, 0, 3, 1))])
def test_rows_in_another_order_and_their_gradient(device, shape, axes):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((*shape, 5)).astype(np.float32)
    want = x.transpose(*axes, len(axes)).reshape(-1, 5)
    factor = rng.standard_normal(want.shape).astype(np.float32)
    move, by = MoveRows(), ms.Tensor(factor)

    def function(x):
        moved = move(x, shape, axes)
        return (moved * by).sum(), moved

    (_, moved), gradient = ms.value_and_grad(function, has_aux=True)(ms.Tensor(x))
    np.testing.assert_array_equal(moved.asnumpy(), want)
    back = factor.reshape(*(shape[a] for a in axes), 5).transpose(*np.argsort(axes), len(axes))
    np.testing.assert_array_equal(gradient.asnumpy(), back)


def test_the_largest(device):
    x = np.random.default_rng(5).standard_normal((6, 40)).astype(np.float32)
    values, columns = (out.asnumpy() for out in Largest()(ms.Tensor(x), 7))
    want = np.argsort(-x, 1)[:, :7]
    assert columns.dtype == np.int32 and (columns == want).all()
    np.testing.assert_array_equal(values, np.take_along_axis(x, want, 1))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_part_of_an_axis(device, axis):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    got = Part()(ms.Tensor(x), axis, 1, 3).asnumpy()
    assert (got == (x[1:3] if axis == 0 else x[:, 1:3])).all()


class _Changes(nn.Cell):
    def __init__(self, name, form):
        super().__init__()
        self.p = ms.Parameter(ms.Tensor([1.0, 2.0, 4.0]), name="p")
        self.change = getattr(form, name)

    def construct(self, value):
        before = self.p.sum()
        return before, ops.depend(self.p, self.change(self.p, ops.depend(value, before))).sum()


@pytest.mark.parametrize(("name", "want"), [("add", [4, 5, 7]), ("set", [3, 3, 3])])
@pytest.mark.parametrize("form", [InPlace.of_device(), InPlace(kernels.InplaceAddExt(), ops.Assign(), None)])
def test_in_place(name, want, form):
    """What Ascend adds with, and the CPU has as well, beside what the CPU adds with."""
    cell = _Changes(name, form)
    before, after = cell(ms.Tensor([3.0, 3.0, 3.0]))
    assert float(before) == 7 and float(after) == sum(want) and cell.p.asnumpy().tolist() == want


def test_which_kernels_ascend_gets(monkeypatch):
    """That of the CPU for adding at places can only replace there, says its documentation."""
    asked = []
    monkeypatch.setattr(kernels, "on_ascend", lambda: True)
    for name in ("scatter_add", "index_select", "topk"):
        monkeypatch.setattr(mint, name, lambda *args, name=name: asked.append(name) or (ms.Tensor([1]),) * 2)
    AddAt().construct("x", "index", "values")
    TakeRows().construct("x", "index")
    Largest().construct("x", 3)
    assert asked == ["scatter_add", "index_select", "topk"]
    form = InPlace.of_device()
    assert [type(x).__name__ for x in (form.add, form.set, form.clear.zero)] == [
        "InplaceAddExt",
        "Assign",
        "InplaceZero",
    ]
