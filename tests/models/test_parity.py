"""The network gives the logits of transformers, packed or alone."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.models.initial import initial_checkpoint  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.rows.collate import collate  # noqa: E402
from tests.models.conftest import FAMILIES  # noqa: E402

pytestmark = pytest.mark.mindspore
HERE = Path(__file__).parent
ROLLOUT = Path(os.environ.get("NPD_ROLLOUT_PYTHON", HERE.parents[1] / ".envs/rollout/bin/python"))
LENGTHS = (17, 30, 9, 41)
ROW = 64


def network(folder, row_length=ROW):
    net = build(ModelSpec.from_folder(folder), Device(), row_length)
    load_hf(net, folder)
    return net


def sequences(seed=3, vocab=97):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n) for n in LENGTHS]


def logits(net, batch):
    hidden = net(*net.inputs(batch))
    return hidden.asnumpy() @ net.head_weight.asnumpy().T


def packed_logits(net, seqs, row_length=ROW):
    """Logits of each sequence, out of two rows that hold them all."""
    batch = collate([seqs[:2], seqs[2:]], row_length, 0, 2)
    flat = logits(net, batch)
    return [flat[a : a + n] for a, n in zip(batch.starts, batch.lengths, strict=True)]


def logits_of_transformers(root, *names):
    """Logits of each sequence, of the checkpoints with these names in a folder."""
    (root / "seqs.json").write_text(json.dumps([s.tolist() for s in sequences()]))
    subprocess.run(
        [ROLLOUT, HERE / "hf_logits.py", root / "seqs.json", *(root / n for n in names)],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    return {name: np.load(root / name / "logits.npz") for name in names}


@pytest.fixture(scope="module")
def references(tmp_path_factory, configs):
    """Per family: its folder and the logits of transformers for each sequence, from one start of the interpreter."""
    root = tmp_path_factory.mktemp("parity")
    for name, config in configs.items():
        initial_checkpoint(root / name, config, std=0.12, norm_std=0.1, bias_std=0.3, shard_bytes=60_000)
    return {name: (root / name, logits) for name, logits in logits_of_transformers(root, *configs).items()}


@pytest.mark.vllm
@pytest.mark.skipif(not ROLLOUT.is_file(), reason="no rollout environment")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(references, family):
    folder, theirs = references[family]
    for i, ours in enumerate(packed_logits(network(folder), sequences())):
        reference = theirs[f"s{i}"]
        assert reference.std() > 0.3, "a test on near-constant logits would prove nothing"
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4)


def test_packed_equals_alone_and_neighbours_do_not_matter(checkpoint):
    net = network(checkpoint("pangu"))
    seqs = sequences()
    together = packed_logits(net, seqs)
    others = [seqs[0], sequences(seed=8)[1], sequences(seed=9)[2], seqs[3]]
    swapped = packed_logits(net, others)
    for i, seq in enumerate(seqs):
        alone = logits(net, collate([[seq]], ROW, 5, 2))[: len(seq)]
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-5)
        if i in (0, 3):
            np.testing.assert_allclose(swapped[i], together[i], rtol=0, atol=1e-5)
        else:
            assert np.abs(swapped[i] - together[i]).max() > 0.1


def test_query_blocks_change_nothing(checkpoint, monkeypatch):
    from npd_ascend.models import attention

    folder = checkpoint("llama")
    whole = packed_logits(network(folder), sequences())
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 24)  # does not divide the row
    for a, b in zip(whole, packed_logits(network(folder), sequences()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_segment_ends_for_flash_attention():
    from npd_ascend.models.device_modules import SegmentEnds
    from npd_ascend.models.network import CausalLM

    batch = collate([[np.arange(3), np.arange(2)], [np.arange(1), np.arange(7)]], 8, 0, 2)
    window = CausalLM.window(SimpleNamespace(flash=True), batch)
    assert window.dtype == ms.int64 and window.asnumpy().tolist() == [3, 5, 8, 9] + [16] * 12
    nothing, ends = SegmentEnds().construct(None, window)
    assert nothing is None and ends is window


def test_norm_for_ascend_gives_its_kernel_one_type():
    from npd_ascend.models.device_modules import DEVICE_MODULES

    seen = []

    def kernel(x, weight):
        seen.append((x.dtype, weight.dtype))
        return x, None

    typed = SimpleNamespace
    cell = typed(
        norm=kernel,
        cast=lambda x, dtype: typed(dtype=dtype),
        compute_type=ms.float32,
        shared=lambda x: x,
        weight=typed(dtype=ms.bfloat16),
    )
    out = DEVICE_MODULES["ascend"].norm.construct(cell, typed(dtype=ms.bfloat16))
    assert seen == [(ms.float32, ms.float32)] and out.dtype == ms.bfloat16


def test_dense_attention_multiplies_operands_of_one_type(monkeypatch):
    """On an NPU the smoke test runs it in bfloat16; here numpy's half precision stands in."""
    from npd_ascend.models import attention

    def product(a, b):
        assert a.dtype == b.dtype, (a.dtype, b.dtype)
        return a @ b

    def core(query, key, value, mask):
        assert query.dtype == key.dtype == value.dtype == np.float32
        return query.reshape(4, 1, 4)

    monkeypatch.setattr(attention, "ms", SimpleNamespace(float32=np.float32))
    monkeypatch.setattr(attention, "ops", SimpleNamespace(ones=np.ones))
    tables = (np.ones((16, 2), np.float32), np.zeros((16, 2), np.float32))
    x, mask = np.ones((4, 8), np.float16), np.zeros((1, 1, 4, 4), np.float32)
    cell = SimpleNamespace(
        head_dim=2,
        num_heads=2,
        kv_num_heads=1,
        n_rep=2,
        product=product,
        turn=np.eye(2, dtype=np.float32),
        q_layernorm=None,
        linear_qkv=SimpleNamespace(weight=None, bias=np.ones(8, np.float32)),
        enter=lambda x: x,
        qkv=lambda x, *_: x,
        linear_proj=lambda x: (x, np.ones(4, np.float32)),
        split_qkv=lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
        core_attention=core,
    )
    cell._biased = lambda x, bias: attention.DenseSelfAttention._biased(cell, x, bias)
    out, _ = attention.DenseSelfAttention.construct(cell, (x, None, None, None), mask, rotary_pos_emb=tables)
    assert out.dtype == np.float16 and (out == 3).all()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_gradients_reach_every_parameter(checkpoint, family):
    net = network(checkpoint(family))
    batch = collate([sequences()[:2]], ROW, 0, 1)
    args = [ms.Tensor(x) for x in (batch.input_ids, batch.position_ids, batch.segment_ids)]
    # Not the sum of squares of normalised states, which hardly depends on what comes before the norm.
    weight = ms.Tensor(np.random.default_rng(0).standard_normal((ROW, 48)).astype(np.float32))
    parameters = [p for p in net.trainable_params() if p is not getattr(net, "lm_head", None)]  # left to the caller

    def loss(*inputs):
        return (net(*inputs) * weight).mean()

    _, grads = ms.value_and_grad(loss, None, parameters)(*args)
    for p, g in zip(parameters, grads, strict=True):
        g = g.asnumpy()
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-7, p.name
