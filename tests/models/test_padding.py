"""Padding of logits that are cut over two processes: everything is as if the whole head had no such rows."""

import numpy as np
import pytest

pytest.importorskip("mindspore")

import mindspore as ms  # noqa: E402

from npd_ascend.models.vocabulary import MaskPadding  # noqa: E402

pytestmark = pytest.mark.mindspore
RANK = """
import sys
import mindspore as ms
import numpy as np
from npd_ascend.annotate.head import ChunkedHead
from npd_ascend.config.job import Device
from npd_ascend.config.schema import LossConfig
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.objectives.chunked import ChunkedLoss
from npd_ascend.objectives.inputs import LossInputs
from npd_ascend.train.lag import Divergence

mesh = DeviceMesh(Device(), 2)
if mesh.schedules:
    sys.exit()
group, given, out = mesh.model, np.load(sys.argv[1]), {}
t = {k: ms.Tensor(v) for k, v in given.items()}
own = slice(group.rank * 12, group.rank * 12 + 12)
head, old = ms.Parameter(ms.Tensor(given["head"][own].copy())), ms.Tensor(given["old_head"][own].copy())
for v in (10, 17):
    targets = given["targets"] % v
    notes = ChunkedHead(head, 5, on_host=False, group=group, vocabulary=v)(t["hidden"], np.arange(9), targets[:, 0], 4)
    for name in ("ids", "logprobs", "logz", "sampled", "entropy"):
        out[f"{name}{v}"] = getattr(notes, name)
    loss = ChunkedLoss(LossConfig(topk_norm="tail"), 4, group, v)
    inputs = LossInputs(labels=targets[:, 0].copy(), teacher_ids=targets[:, 1:].copy(),
                        teacher_logprobs=given["teacher"], weights=given["weights"])
    for name, value in zip(("loss", "terms", "d_hidden", "d_head"), loss(t["hidden"], head, loss.tensors(inputs))):
        out[f"{name}{v}"] = value.asnumpy()
    lag = Divergence(v, group)(t["hidden"], head, t["old_hidden"], old, ms.Tensor(np.ones(9, np.float32)))
    out[f"lag{v}"] = lag.asnumpy()
np.savez(f"{sys.argv[2]}-{group.rank}.npz", **out)
"""


@pytest.mark.parametrize("vocabulary", [None, 1, 9, 12, 40])
def test_mask(vocabulary):
    logits = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
    out = MaskPadding(vocabulary)(ms.Tensor(logits)).asnumpy()
    real = min(12, vocabulary or 12)
    assert np.array_equal(out[:, :real], logits[:, :real]) and (out[:, real:] < -1e29).all()


@pytest.mark.slow
def test_slices(tmp_path, under_msrun):
    """Head of 24 rows, 12 a rank: the second rank holds padding only (10), or some (17)."""
    from npd_ascend.annotate.distribution import summarise
    from npd_ascend.config.schema import LossConfig
    from npd_ascend.objectives.chunked import ChunkedLoss
    from npd_ascend.objectives.inputs import LossInputs

    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    given = {
        "hidden": normal(9, 6),
        "head": normal(24, 6),
        "old_hidden": normal(9, 6),
        "old_head": normal(24, 6),
        "targets": rng.integers(0, 24, (9, 4)).astype(np.int32),
        "weights": rng.random((9, 2)).astype(np.float32),
        "teacher": np.log(rng.dirichlet(np.ones(5), 9)[:, :3]).astype(np.float32),
    }
    given["head"][10:] *= 5  # ids from 10 on are louder, whether they count or not
    np.savez(tmp_path / "given.npz", **given)
    under_msrun(2, RANK, tmp_path / "given.npz", tmp_path / "out")
    ranks = [np.load(tmp_path / f"out-{r}.npz") for r in (0, 1)]
    for v in (10, 17):
        logits = given["hidden"] @ given["head"][:v].T
        targets = given["targets"] % v
        want = summarise(np.ascontiguousarray(logits), targets[:, 0], 4)
        for got in ranks:
            assert np.array_equal(got[f"ids{v}"], want.ids)
            for name in ("logprobs", "logz", "sampled", "entropy"):
                np.testing.assert_allclose(got[f"{name}{v}"], getattr(want, name), atol=2e-5, err_msg=f"{name} {v}")
        t = {k: ms.Tensor(a) for k, a in given.items()}
        plain = ChunkedLoss(LossConfig(topk_norm="tail"), 4)
        inputs = LossInputs(
            labels=targets[:, 0].copy(),
            teacher_ids=targets[:, 1:].copy(),
            teacher_logprobs=given["teacher"],
            weights=given["weights"],
        )
        loss = [x.asnumpy() for x in plain(t["hidden"], ms.Tensor(given["head"][:v].copy()), plain.tensors(inputs))]
        for got in ranks:
            for name, value in zip(("loss", "terms", "d_hidden"), loss, strict=False):
                np.testing.assert_allclose(got[f"{name}{v}"], value, rtol=1e-3, atol=1e-4, err_msg=f"{name} {v}")
        d_head = np.concatenate([got[f"d_head{v}"] for got in ranks])
        np.testing.assert_allclose(d_head[:v], loss[3], rtol=1e-3, atol=1e-4)
        assert not d_head[v:].any()
        new, old = (
            x - np.log(np.exp(x).sum(1, keepdims=True))
            for x in (logits.astype(np.float64), (given["old_hidden"] @ given["old_head"][:v].T).astype(np.float64))
        )
        for got in ranks:
            np.testing.assert_allclose(
                got[f"lag{v}"], [(np.exp(new) * (new - old)).sum(), (np.exp(old) * (old - new)).sum()], rtol=1e-4
            )
