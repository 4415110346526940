"""The compiled step: optimiser against numpy, and the loss whatever the packing and the splitting."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import Parameter  # noqa: E402

from npd_ascend.config.schema import TrainConfig  # noqa: E402
from npd_ascend.models.parallel.mesh import DeviceMesh  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.train.stage import _reader  # noqa: E402
from npd_ascend.train.step import AdamW, Update  # noqa: E402

pytestmark = pytest.mark.mindspore


class AdamWInNumpy:
    """Loshchilov & Hutter, algorithm 2, in float64."""

    def __init__(self, params, s):
        self.params, self.s, self.t = [p.astype(np.float64) for p in params], s, 0
        self.m, self.v = ([np.zeros_like(p) for p in self.params] for _ in range(2))

    def update(self, gradients, lr):
        self.t += 1
        s = self.s
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
        factor = min(1.0, s.clip / norm)
        for i, g in enumerate(gradients):
            g = g.astype(np.float64) * factor
            self.m[i] = s.beta1 * self.m[i] + (1 - s.beta1) * g
            self.v[i] = s.beta2 * self.v[i] + (1 - s.beta2) * g * g
            m, v = self.m[i] / (1 - s.beta1**self.t), self.v[i] / (1 - s.beta2**self.t)
            decay = s.weight_decay if self.params[i].ndim > 1 else 0.0
            self.params[i] -= lr * (m / (np.sqrt(v) + s.eps) + decay * self.params[i])
        return norm


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_adamw(eps):
    ms.set_context(mode=ms.GRAPH_MODE)
    s = TrainConfig(eps=eps, weight_decay=0.3)
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 7), (7,), (3, 2, 2))]
    params = [Parameter(ms.Tensor(p), name=f"p{i}") for i, p in enumerate(start)]
    optimizer = AdamW(params, s)
    sums = Parameter(ms.Tensor(np.zeros(3, np.float32)), name="sums")
    update = Update(optimizer, sums, s.clip)
    naive = AdamWInNumpy(start, s)
    for step in range(1, 8):
        lr = 1e-2 / step
        gradients = [(rng.standard_normal(p.shape) * (3 if step % 2 else 0.01)).astype(np.float32) for p in start]
        for held in optimizer.gradients:
            held.set_data(ms.Tensor(gradients[int(held.name.removeprefix("gradient.p"))]))
        sums.set_data(ms.Tensor(np.array([step, 2, 3], np.float32)))
        norm, total = update(*optimizer.scalars(lr, step))
        assert float(norm.asnumpy()) == pytest.approx(naive.update(gradients, lr), rel=1e-5)
        assert total.asnumpy().tolist() == [step, 2, 3]
        for p, want in zip(params, naive.params, strict=True):
            np.testing.assert_allclose(p.asnumpy(), want, rtol=2e-5, atol=2e-6)
        assert all((g.asnumpy() == 0).all() for g in optimizer.gradients) and not sums.asnumpy().any()


@pytest.fixture
def gradient(world, kept):
    """Loss, gradients and token count of the first global batch; network as made from one seed."""

    def go(packs="packs", **settings):
        job = world.job(packs=packs, settings={"micro_batch": 4, "vocab_chunk_rows": 1000, **settings})
        spec, mesh = ModelSpec.from_folder(job.student), DeviceMesh(job.device)
        reader = _reader(job, spec, mesh, kept.align)
        trainer = kept.trainer(job, spec, reader, mesh)
        load_hf(trainer.net, job.student)
        tokens = reader.tokens(0, 0)
        total = sum(trainer.accumulate(m, tokens) for m in reader.micro_batches(0, 0))
        return total / tokens, {g.name: g.asnumpy().copy() for g in trainer.optimizer.gradients}, tokens

    return go


def compare(a, b, rtol):
    assert a[0] == pytest.approx(b[0], rel=1e-5) and a[2] == b[2]
    assert list(a[1]) == list(b[1])
    for name in a[1]:
        size = np.abs(a[1][name]).max() + 1e-12
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=rtol, atol=size * rtol, err_msg=name)
    assert max(np.abs(g).max() for g in a[1].values()) > 1e-3


def test_splitting_does_not_matter(gradient):
    """The same global batch in micro-batches of 1 and 4 rows, with other loss chunks."""
    compare(gradient(micro_batch=1, vocab_chunk_rows=8), gradient(), 2e-4)


def test_packing_does_not_matter(world, gradient):
    """All samples of the epoch in packed rows, or one a row."""
    alone = world.pack(1, "alone", alone=True)
    n = alone.rows + -alone.rows % 4
    compare(gradient("alone", global_batch=n), gradient(global_batch=n), 2e-4)


def test_recomputation_does_not_matter(gradient):
    compare(gradient(recompute=True), gradient(), 1e-5)
