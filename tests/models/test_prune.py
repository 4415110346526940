"""Depth pruning: which layers, under which names, in which files, and what the folder then says of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.prune import most_influential, prune
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import INDEX, SINGLE, entries
from npd_ascend.models.weights import check_checkpoint

LAYERS = 5


def values(folder):
    return {name: e.read() for name, e in entries(folder).items()}


@pytest.mark.parametrize(
    ("family", "dtype", "shards"),
    [
        ("pangu", "BF16", 3),
        ("pangu_tied", "F16", 1),
        ("qwen2", "BF16", 3),
        ("llama", "F32", 1),
        ("qwen3", "BF16", 3),
        ("qwen3_tied", "F32", 3),
        ("mistral", "BF16", 1),
    ],
)
@pytest.mark.parametrize("layers", [[0, 2, 4], [3], [0, 1, 2, 3, 4]])
def test_chosen_layers_move_up_and_all_else_stays(checkpoint, tmp_path, family, dtype, shards, layers):
    source = checkpoint(family, dtype=dtype, shards=shards, num_hidden_layers=LAYERS)
    pruned = prune(source, layers, tmp_path / "out")
    before, after = values(source), values(tmp_path / "out")

    expected = {name: value for name, value in before.items() if ".layers." not in name}
    for new, old in enumerate(layers):
        mark = f"model.layers.{old}."
        expected |= {
            f"model.layers.{new}.{name[len(mark) :]}": value for name, value in before.items() if name.startswith(mark)
        }
    assert after.keys() == expected.keys()
    assert all(np.array_equal(after[name], value) for name, value in expected.items())
    assert {e.dtype for e in entries(tmp_path / "out").values()} == {dtype}

    spec = check_checkpoint(tmp_path / "out")
    assert spec == pruned and spec.num_layers == len(layers)
    assert spec.parameters == sum(v.size for v in after.values())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_shards_are_numbered_and_indexed_anew(checkpoint, tmp_path):
    source = checkpoint("llama", shards=3, num_hidden_layers=LAYERS)
    assert len(list(source.glob("*.safetensors"))) > 3
    prune(source, [1, 3], tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    found = entries(tmp_path / "out")
    assert index["weight_map"] == {name: e.path.name for name, e in found.items()}
    assert index["metadata"]["total_size"] == sum(e.stop - e.start for e in found.values())


def test_one_file_left_has_no_index(tmp_path, checkpoint):
    source = checkpoint("llama_tied", shards=3, num_hidden_layers=3)
    for path in source.glob("*.safetensors"):  # everything but the middle layer into one file
        path.unlink()
    (source / INDEX).unlink()
    whole = checkpoint("llama_tied", name="whole", num_hidden_layers=3)
    from npd_ascend.models import tensorfile

    found = entries(whole)
    parts = {
        "model-00001-of-00002.safetensors": [n for n in found if "layers.1." in n],
        "model-00002-of-00002.safetensors": [n for n in found if "layers.1." not in n],
    }
    for file, names in parts.items():
        tensorfile.write(source / file, [(n, "F32", found[n].shape) for n in names], lambda n: found[n].read())
    (source / INDEX).write_text(json.dumps({"weight_map": {n: f for f, names in parts.items() for n in names}}))
    prune(source, [0, 2], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors*")] == [SINGLE]
    check_checkpoint(tmp_path / "out")


def test_config_speaks_of_the_layers_that_are_left(checkpoint, tmp_path):
    kinds = ["full_attention"] * LAYERS
    source = checkpoint("qwen3", num_hidden_layers=LAYERS, layer_types=kinds, max_window_layers=4)
    prune(source, [0, 3, 4], tmp_path / "out", np.array([0.9, 0.1, 0.2, 0.5, 0.4]))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"], config["max_window_layers"]) == (3, kinds[:3], 2)
    record = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert record == {
        "source": source.name,
        "layers": [0, 3, 4],
        "of": LAYERS,
        "block_influence": [0.9, 0.1, 0.2, 0.5, 0.4],
    }


def test_most_influential():
    influence = np.array([0.5, 0.1, 0.3, 0.1, 0.9])
    assert most_influential(influence, 2) == [0, 4]
    assert most_influential(influence, 4) == [0, 1, 2, 4]
    assert most_influential(influence, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "ascending"),
        ([1, 0], "ascending"),
        ([1, 1], "ascending"),
        ([0, 2], "there is no layer 2"),
        ([-1, 0], "there is no layer -1"),
    ],
)
def test_refusals_write_nothing(checkpoint, tmp_path, layers, message):
    source = checkpoint("llama")
    with pytest.raises(UserError, match=message):
        prune(source, layers, tmp_path / "out")
    with pytest.raises(UserError, match="same folder"):
        prune(source, [0], source)
    assert [p.name for p in tmp_path.iterdir()] == [source.name] and ModelSpec.from_folder(source).num_layers == 2


def test_damaged_source_is_refused(checkpoint, tmp_path):
    source = checkpoint("llama")
    path = source / SINGLE
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match="NaN"):
        prune(source, [0, 1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
