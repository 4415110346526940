"""Checkpoints into the network and back."""

import json

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from safetensors.numpy import load_file, save_file  # noqa: E402

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.models import tensorfile  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf, save_hf  # noqa: E402

pytestmark = pytest.mark.mindspore


def network(folder):
    return build(ModelSpec.from_folder(folder), Device(), 64)


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("family", "dtype", "shards"),
    [
        ("pangu", "BF16", 3),
        ("pangu_tied", "F16", 1),
        ("qwen2", "BF16", 1),
        ("llama", "F32", 3),
        ("llama_tied", "F32", 1),
        ("qwen3", "BF16", 3),
        ("qwen3_tied", "F16", 1),
        ("mistral", "BF16", 1),
    ],
)
def test_round_trip_is_identical_to_the_byte(checkpoint, tmp_path, family, dtype, shards):
    folder = checkpoint(family, dtype=dtype, shards=shards)
    assert len(list(folder.glob("*.safetensors"))) >= min(shards, 2)
    net = network(folder)
    load_hf(net, folder)
    save_hf(net, tmp_path / "out", folder)
    assert files(tmp_path / "out") == files(folder)


def test_changed_weights_are_rounded_into_the_dtype(checkpoint, tmp_path):
    folder = checkpoint("qwen2", dtype="BF16")
    net = network(folder)
    load_hf(net, folder)
    rng = np.random.default_rng(0)
    for p in net.get_parameters():
        p.set_data(ms.Tensor((p.asnumpy() + 0.01 * rng.standard_normal(p.shape)).astype(np.float32)))
    save_hf(net, tmp_path / "out", folder)
    again = network(folder)
    load_hf(again, tmp_path / "out")
    for a, b in zip(net.get_parameters(), again.get_parameters(), strict=True):
        a, b = a.asnumpy(), b.asnumpy()
        assert not np.array_equal(a, b)
        assert (np.abs(a - b) <= np.abs(a) * 2.0**-8 + 1e-38).all(), "more than half a unit of bfloat16 away"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": t["model.norm.weight"]}),
            "not expected: model.layers.0.self_attn.q_norm.weight",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(47, np.float32)}),
            r"shape \[47\], config.json asks for \[48\]",
        ),
        (lambda t: t["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 4), np.nan), "up_proj.weight holds NaN"),
        (lambda t: t["lm_head.weight"].__setitem__((0, 0), np.inf), "lm_head.weight holds NaN or infinite"),
    ],
)
def test_faulty_checkpoints(checkpoint, change, words):
    folder = checkpoint("llama")
    rewrite(folder, change)
    with pytest.raises(UserError, match=words) as e:
        load_hf(network(folder), folder)
    assert "\n" not in str(e.value)


def test_redundant_tensors_are_tolerated_and_kept(checkpoint, tmp_path):
    folder = checkpoint("llama_tied")
    rewrite(
        folder,
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"],
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
            }
        ),
    )
    net = network(folder)
    load_hf(net, folder)
    save_hf(net, tmp_path / "out", folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after) and all(np.array_equal(before[n], after[n]) for n in before)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(UserError, match="ties the embeddings, but"):
        load_hf(net, folder)


def test_a_missing_shard_is_named(checkpoint):
    folder = checkpoint("pangu", shards=3)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=gone.name):
        load_hf(network(folder), folder)
    assert json.loads((folder / tensorfile.INDEX).read_text())["weight_map"]


def test_a_diverged_network_is_not_saved(checkpoint, tmp_path):
    folder = checkpoint("qwen2")
    net = network(folder)
    load_hf(net, folder)
    p = next(p for p in net.get_parameters() if p.name.endswith("linear_qkv.weight"))
    p.set_data(ms.Tensor(np.full(p.shape, np.nan, np.float32)))
    with pytest.raises(UserError, match="diverged"):
        save_hf(net, tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_bfloat16_on_cpu_is_refused(checkpoint):
    with pytest.raises(UserError, match="float32"):
        build(ModelSpec.from_folder(checkpoint()), Device(dtype="bfloat16"), 64)


@pytest.mark.parametrize("row", [1024, 2056])
def test_rows_the_flash_kernel_cannot_do(checkpoint, row):
    with pytest.raises(UserError, match="multiple of 16"):
        build(ModelSpec.from_folder(checkpoint()), Device(target="ascend", dtype="bfloat16"), row)


def test_the_ascend_network_is_accepted_by_mindformers_and_keeps_bfloat16(checkpoint, tmp_path):
    """All but running it: MindFormers' config takes the flash settings, the weights fit its interleaved layout."""
    from npd_ascend.models.device_modules import DEVICE_MODULES
    from npd_ascend.models.network import CausalLM, setup_context

    setup_context(Device())
    folder = checkpoint("pangu", dtype="BF16", shards=3)
    net = CausalLM(ModelSpec.from_folder(folder), DEVICE_MODULES["ascend"], 2048, "bfloat16", "bfloat16")
    assert {p.dtype for p in net.get_parameters()} == {ms.bfloat16}
    attention = net.model.decoder.layers[0].self_attention
    assert (attention.core_attention.input_layout, attention.core_attention.sparse_mode) == ("TND", 3)
    load_hf(net, folder)
    weights = {name: entry.read() for name, entry in tensorfile.entries(folder).items()}
    fc1 = net.model.decoder.layers[0].mlp.linear_fc1.weight.float().asnumpy()
    np.testing.assert_array_equal(fc1[0::2], weights["model.layers.0.mlp.gate_proj.weight"])
    np.testing.assert_array_equal(fc1[1::2], weights["model.layers.0.mlp.up_proj.weight"])
    save_hf(net, tmp_path / "out", folder)
    assert files(tmp_path / "out") == files(folder)


def test_matrices_held_in_the_compute_type(checkpoint):
    """For sharded optimizers: layers' matrices in bfloat16, all else in float32, values those of the checkpoint."""
    from npd_ascend.models.device_modules import DEVICE_MODULES
    from npd_ascend.models.network import CausalLM, setup_context

    setup_context(Device())
    folder = checkpoint("pangu")
    net = CausalLM(ModelSpec.from_folder(folder), DEVICE_MODULES["ascend"], 2048, "bfloat16", "float32")
    net.hold_in_compute_type()
    given = {}
    load_hf(net, folder, given.__setitem__)
    for p in net.get_parameters():
        matrix = ".layers." in p.name and p.ndim == 2
        assert p.dtype == (ms.bfloat16 if matrix else ms.float32), p.name
        np.testing.assert_allclose(p.float().asnumpy(), given[p.name], rtol=2**-8 if matrix else 0)
