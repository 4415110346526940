"""The network as it is put together for Ascend, with plain references in the places of CANN's kernels, against that of
the CPU: hidden states, loss and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mindspore")

import mindspore as ms  # noqa: E402

from npd_ascend.annotate.distribution import summarise  # noqa: E402
from npd_ascend.annotate.head import ChunkSummary  # noqa: E402
from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.config.schema import LossConfig  # noqa: E402
from npd_ascend.models import network  # noqa: E402
from npd_ascend.models.device_modules import DEVICE_MODULES, MAX_SEGMENTS, FusedNorm  # noqa: E402
from npd_ascend.models.network import CausalLM, build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.objectives.chunked import ChunkedLoss  # noqa: E402
from npd_ascend.objectives.inputs import LossInputs  # noqa: E402
from npd_ascend.rows.collate import collate  # noqa: E402
from npd_ascend.train.step import PackedLoss  # noqa: E402
from tests.models import reference_kernels as reference  # noqa: E402

pytestmark = pytest.mark.mindspore
ROW = 48


def short_rows(make=network._config):
    """``network._config`` for rows shorter than the compressed mask, which MindFormers refuses."""
    return lambda spec, modules, row, *dtypes: make(spec, modules, max(row, 2048) if modules.flash else row, *dtypes)


@pytest.fixture
def pair(checkpoint, monkeypatch):
    """``make(family, dtype)`` -> (network of the CPU, that for Ascend) with the same weights."""
    monkeypatch.setattr(network, "_config", short_rows())

    def make(family, row=ROW, dtype="float32", **changes):
        folder = checkpoint(family, **changes)
        spec = ModelSpec.from_folder(folder)
        cpu = build(spec, Device(), row)
        ascend = CausalLM(spec, DEVICE_MODULES["ascend"], row, dtype, "float32").set_train(False)
        found = reference.put_in(ascend, exact=dtype == "float32")
        layers = spec.num_layers
        assert found == {
            "Flash": layers,
            "Swiglu": layers,
            "Outer": 2,
            "Embedding": 1,
            "Rotary": layers,
            "RmsNorm": 2 * layers + 1 + 2 * layers * spec.qk_norm,
        }
        for net in (cpu, ascend):
            load_hf(net, folder)
        return cpu, ascend

    return make


def packed(rng, rows, row=ROW, batch=None):
    return collate(
        [[rng.integers(0, 97, n) for n in lengths] for lengths in rows], row, 0, batch or len(rows), longest=row
    )


def loss_and_gradients(net, batch, inputs, positions, *, ascend):
    """Loss, its terms, and gradients as tensors of a Hugging Face checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        if ascend:
            reference.put_in_kernels(patch)
        forward = PackedLoss(net, ChunkedLoss(LossConfig(), 8, net.group, vocabulary=90))
        return _loss_and_gradients(net, forward, batch, inputs, positions)


def _loss_and_gradients(net, forward, batch, inputs, positions):
    params = ms.ParameterTuple(net.trainable_params())
    (value, terms, of_head), gradients = ms.value_and_grad(forward, None, params, has_aux=True)(
        *net.inputs(batch), ms.Tensor(np.float32(1 / 16)), ms.Tensor(positions), *forward.loss.tensors(inputs)
    )
    shards = net.tp_shards()
    found = {}
    for p, gradient in zip(params, gradients, strict=True):
        names = shards.rules[p.name].hf
        if p is net.head_weight:  # a tied table has the gradient of the embedding beside that of the head
            gradient = gradient + of_head.astype(gradient.dtype)
        found.update(zip(names, shards.tensors(p.name, gradient.astype(ms.float32).asnumpy()), strict=True))
    return float(value), terms.asnumpy(), found


def of_the_loss(rng, n=16, k=4):
    return LossInputs(
        labels=rng.integers(0, 90, n).astype(np.int32),
        weights=np.ones((n, 2), np.float32),
        teacher_ids=np.stack([rng.permutation(90)[:k] for _ in range(n)]).astype(np.int32),
        teacher_logprobs=np.log(rng.dirichlet(np.ones(k), n) * 0.9).astype(np.float32),
    )


def compare(got, want, tolerance):
    """Each gradient relative to its own largest value."""
    (value, terms, gradients), (value_0, terms_0, gradients_0) = got, want
    assert value == pytest.approx(value_0, rel=tolerance)
    np.testing.assert_allclose(terms, terms_0, rtol=tolerance)
    assert gradients.keys() == gradients_0.keys()
    for name, gradient in gradients_0.items():
        assert np.abs(gradient).max() > 0, name
        gap = np.abs(gradients[name] - gradient).max() / np.abs(gradient).max()
        assert gap < tolerance, (name, gap)


@pytest.mark.parametrize(
    "family", ["pangu_tied", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pangu", "qwen3_tied", "llama3"))]
)
def test_equals_the_table_of_the_cpu(pair, family):
    """Biases of four projections or none, tied or not, norms of heads, YaRN's scale, Llama 3's frequencies; packed rows
    whose padding is a segment, one of them full, one of padding alone."""
    rng = np.random.default_rng(0)
    cpu, ascend = pair(family)
    batch = packed(rng, [(17, 1, 22), (30, 18)], batch=3)
    hidden = [net(*net.inputs(batch)).asnumpy().reshape(3, ROW, -1) for net in (cpu, ascend)]
    assert hidden[0].std() > 0.3
    for row, used in ((0, 40), (1, 48)):
        np.testing.assert_allclose(hidden[1][row, :used], hidden[0][row, :used], rtol=0, atol=2e-5)
    positions = np.concatenate([np.arange(10, 18), ROW + np.arange(24, 32)]).astype(np.int32)
    inputs = of_the_loss(rng)
    compare(*[loss_and_gradients(net, batch, inputs, positions, ascend=net is ascend) for net in (ascend, cpu)], 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pangu_tied", "qwen3_tied"])
def test_half_types(pair, monkeypatch, family):
    """The casts of bfloat16, at their places: float16 stands for it, of which the CPU has products. The references
    refuse types that the kernels do not take: flash wants 16 bits, the norm float32 with float32 weights."""
    config = network._config
    monkeypatch.setattr(
        network,
        "_config",
        lambda spec, modules, row, compute, params: config(
            spec, modules, row, compute.replace("bfloat16", "float16"), params
        ),
    )
    monkeypatch.setattr(network.ms, "bfloat16", ms.float16)
    rng = np.random.default_rng(1)
    cpu, ascend = pair(family, dtype="bfloat16")
    assert ascend.compute_dtype == ms.float16
    batch = packed(rng, [(20, 28)])
    got, want = (net(*net.inputs(batch)) for net in (ascend, cpu))
    assert got.dtype == ms.float16 and want.dtype == ms.float32
    gap = np.abs(got.asnumpy().astype(np.float32) - want.asnumpy())
    assert 1e-5 < gap.max() < 0.02 * np.abs(want.asnumpy()).max()  # rounded, and no more than that
    inputs, positions = of_the_loss(rng), np.arange(24, 40).astype(np.int32)
    compare(*[loss_and_gradients(net, batch, inputs, positions, ascend=net is ascend) for net in (ascend, cpu)], 0.03)


@pytest.mark.slow
def test_as_many_segments_as_are_told_apart(pair):
    """1,023 samples and the padding behind them in one row: each is answered as if it stood by itself."""
    rng = np.random.default_rng(2)
    row = 2 * MAX_SEGMENTS
    cpu, ascend = pair("pangu_tied", row=row, num_hidden_layers=1)
    texts = [rng.integers(0, 97, n) for n in [1, 2, 3, 2] * (MAX_SEGMENTS // 4)][: MAX_SEGMENTS - 1]
    texts[-1] = texts[-1][:1]
    batch = collate([texts], row, 0, 1)
    window = ascend.window(batch).asnumpy()
    assert window.shape == (MAX_SEGMENTS,) and (np.diff(window) > 0).all() and window[-1] == row
    got = ascend(*ascend.inputs(batch)).asnumpy()
    np.testing.assert_allclose(got[: batch.tokens], cpu(*cpu.inputs(batch)).asnumpy()[: batch.tokens], atol=2e-5)
    for i in (0, 5, 600, MAX_SEGMENTS - 2):
        alone = collate([[texts[i]]], row, 0, 1)
        want = ascend(*ascend.inputs(alone)).asnumpy()[: len(texts[i])]
        at = batch.starts[i]
        np.testing.assert_allclose(got[at : at + len(texts[i])], want, atol=2e-5)


@pytest.mark.parametrize("vocabulary", [None, 33])
def test_top_k_in_the_graph(monkeypatch, vocabulary):
    rng = np.random.default_rng(4)
    hidden, head = (rng.standard_normal(s).astype(np.float32) for s in ((9, 16), (40, 16)))
    at, targets = np.array([0, 3, 8, 8], np.int32), np.array([5, 0, 32, 7], np.int32)
    reference.put_in_kernels(monkeypatch)
    cell = ChunkSummary(6, vocabulary=vocabulary)
    got = [x.asnumpy() for x in cell(ms.Tensor(hidden), ms.Tensor(at), ms.Tensor(head), ms.Tensor(targets))]
    want = summarise((hidden[at] @ head.T)[:, :vocabulary], targets, 6)
    for found, name in zip(got, ("logz", "sampled", "entropy", "logprobs", "ids"), strict=True):
        np.testing.assert_allclose(found, getattr(want, name), atol=2e-5)


def test_the_norm_casts_weights_of_any_type():
    """Weights that annotation holds in 16 bits reach the kernel in float32."""
    config = short_rows()(
        ModelSpec.from_config(
            {
                "model_type": "llama",
                "vocab_size": 8,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            {},
            "config",
        ),
        DEVICE_MODULES["ascend"],
        ROW,
        "float32",
        "float32",
    )
    norm = FusedNorm(config, 16, 1e-5)
    norm.norm = reference.RmsNorm(1e-5)
    x = np.random.default_rng(5).standard_normal((3, 2, 16)).astype(np.float32)
    weight = np.linspace(0.5, 2, 16).astype(np.float32)
    norm.weight = ms.Parameter(ms.Tensor(weight, ms.float16), name="w")
    out = norm(ms.Tensor(x, ms.float16))
    assert out.dtype == ms.float16
    want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(out.asnumpy(), want, rtol=5e-3, atol=5e-3)


_RANK = """
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
sys.path.insert(0, sys.argv[1])
import mindspore as ms
from mindspore import ops
from tests.models import reference_kernels as reference
from tests.models import test_ascend_table as t
from npd_ascend.config.job import Device
from npd_ascend.models import network
from npd_ascend.models.device_modules import DEVICE_MODULES
from npd_ascend.models.network import CausalLM
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf

tp, cp = map(int, Path(sys.argv[4]).read_text().split())
mesh = DeviceMesh(Device(), tp, cp)
for name in ("AllGather", "ReduceScatter", "AlltoAll"):
    setattr(ops, name, getattr(reference, name))
network._config = t.short_rows()
model, context = (replace(g, native=g.size > 1) for g in (mesh.model, mesh.context))
spec = ModelSpec.from_folder(Path(sys.argv[2]))
net = CausalLM(spec, DEVICE_MODULES["ascend"], t.ROW, "float32", "float32", model, context).set_train(False)
reference.put_in(net, exact=True)
load_hf(net, Path(sys.argv[2]))
batch, inputs, positions = t.given(np.random.default_rng(6))
mine, where = net.slice.find(positions.astype(np.int64), t.ROW)
loss, terms, gradients = t.loss_and_gradients(net, batch, t.some(inputs, mine), where.astype(np.int32), ascend=True)
total = {name: mesh.sum(g) for name, g in gradients.items()}
np.savez(f"{sys.argv[3]}-{mesh.rank}.npz", loss=mesh.sum(np.float32([loss])), terms=mesh.sum(terms), **total)
"""


def given(rng):
    """Rows of two samples and padding, and losses at positions in both halves of them."""
    return (
        packed(rng, [(17, 22), (30, 18)]),
        of_the_loss(rng),
        np.concatenate([np.arange(10, 14), np.arange(30, 34), ROW + np.arange(20, 28)]).astype(np.int32),
    )


def some(inputs, rows):
    """Those rows of the loss's inputs."""
    return LossInputs(**{name: None if x is None else x[rows] for name, x in vars(inputs).items()})


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "cp"), [(2, 1), (1, 2)])
def test_cut_over_two(pair, checkpoint, tmp_path, under_msrun, tp, cp):
    """Heads, MLP columns, vocabulary and head of the loss over two ranks, or the positions of the rows; collectives as
    HCCL has them, made of sums."""
    (tmp_path / "cut").write_text(f"{tp} {cp}")
    cpu, _ = pair("pangu_tied", vocab_size=98)
    root = Path(__file__).parents[2]
    under_msrun(2, _RANK, root, tmp_path / "hf", tmp_path / "out", tmp_path / "cut")
    batch, inputs, positions = given(np.random.default_rng(6))
    want = loss_and_gradients(cpu, batch, inputs, positions, ascend=False)
    for rank in range(2):
        found = dict(np.load(tmp_path / f"out-{rank}.npz"))
        loss, terms = float(found.pop("loss")[0]), found.pop("terms")
        compare((loss, terms, found), want, 2e-4)
