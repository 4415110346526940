"""``npd convert``: values, types, what the config then says, refusals."""

import json

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.convert import convert
from npd_ascend.models.mapping import rules
from npd_ascend.models.spec import ModelSpec

CONFIG = {
    "model_type": "PanguEmbedded", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "bias": True,
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    rng = np.random.default_rng(0)
    values = {n: rng.normal(size=s).astype(np.float32) for r in rules(ModelSpec.from_folder(folder))
              for n, s in zip(r.hf, r.shapes, strict=True)}  # fmt: skip
    tensorfile.write(folder / "model.safetensors", [(n, "F32", v.shape) for n, v in values.items()], values.__getitem__)
    return folder, values


def test_a_copy_is_bit_identical(source, tmp_path):
    folder, _ = source
    convert(folder, tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-10), ("float32", 0)])
def test_other_types(source, tmp_path, dtype, relative):
    folder, values = source
    convert(folder, tmp_path / "out", dtype)
    found = tensorfile.entries(tmp_path / "out")
    assert set(found) == set(values)
    for name, value in values.items():
        assert (np.abs(found[name].read() - value) <= relative * np.abs(value) + 1e-7).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_refusals_write_nothing(source, tmp_path):
    folder, values = source
    with pytest.raises(UserError, match="expected one of"):
        convert(folder, tmp_path / "out", "int8")
    with pytest.raises(UserError, match="same folder"):
        convert(folder, folder)
    values["model.norm.weight"][3] = np.nan
    tensorfile.write(folder / "model.safetensors", [(n, "F32", v.shape) for n, v in values.items()], values.__getitem__)
    with pytest.raises(UserError, match="model.norm.weight"):
        convert(folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
