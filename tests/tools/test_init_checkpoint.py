"""Random checkpoints: names, shapes, spread, rounding, shards."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import init_checkpoint as init
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec

TOKENIZER = Path(__file__).resolve().parents[2] / "assets" / "mini" / "tokenizer"
SHAPE = init.Shape(32, 64, 2, 4, 2, 96, 10_000.0, 128, False)


def load(path):
    with safe_open(path, "numpy") as f:
        assert f.metadata() == {"format": "pt"}
        return {name: f.get_tensor(name) for name in f.keys()}


def test_folder(tmp_path):
    parameters = init.make(tmp_path / "c", SHAPE, 0, "float32", TOKENIZER)
    weights = load(tmp_path / "c" / "model.safetensors")
    assert sum(w.size for w in weights.values()) == parameters
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (16, 32)
    assert weights["model.layers.0.self_attn.o_proj.bias"].shape == (32,)
    assert len(weights) == 2 * 13 + 3
    assert weights["model.embed_tokens.weight"].std() == pytest.approx(init.STD, rel=0.05)
    assert weights["model.layers.0.mlp.down_proj.weight"].std() == pytest.approx(init.STD / math.sqrt(4), rel=0.06)
    up = [weights[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(2)]
    assert not np.array_equal(*up)
    spec = ModelSpec.from_folder(tmp_path / "c")
    assert (spec.model_type, spec.vocab_size, spec.num_kv_heads, spec.o_bias) == ("PanguEmbedded", 96, 2, True)
    assert spec.eos_token_ids == (4,) and spec.bos_token_id == 1 and spec.pad_token_id == 0
    assert (tmp_path / "c" / "tokenizer.json").read_bytes() == (TOKENIZER / "tokenizer.json").read_bytes()


def test_tokenizer_of_another_checkpoint(tmp_path):
    """Its tokenizer is taken, and nothing that says what that checkpoint is."""
    init.make(tmp_path / "old", replace(SHAPE, hidden_size=64, num_hidden_layers=3), 0, "bfloat16", TOKENIZER)
    (tmp_path / "old" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "old" / "added_tokens.json").write_text("{}")
    init.make(tmp_path / "new", SHAPE, 0, "float32", tmp_path / "old")
    spec = ModelSpec.from_folder(tmp_path / "new")
    assert (spec.hidden_size, spec.num_layers) == (32, 2)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == "float32"
    assert load(tmp_path / "new" / "model.safetensors")["model.norm.weight"].shape == (32,)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()


def test_tokenizer_without_padding_or_begin(tmp_path):
    """Padding then is the end token, as a collator needs some id; a begin token is not made up."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(TOKENIZER, folder)
    names = json.loads((folder / "tokenizer_config.json").read_text())
    eos = init.special_ids(folder)["eos_token_id"]
    for kind in ("pad", "bos"):
        names[f"{kind}_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert init.special_ids(folder) == {"pad_token_id": eos, "eos_token_id": eos}


def test_seed_makes_the_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        init.make(tmp_path / name, SHAPE, seed, "bfloat16")
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b and a != c and len(a) == len(c)


def test_shards_hold_the_same_weights(tmp_path):
    init.make(tmp_path / "whole", SHAPE, 3, "float32")
    init.make(tmp_path / "parts", SHAPE, 3, "float32", shard_bytes=20_000)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    whole = load(tmp_path / "whole" / "model.safetensors")
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in whole.values())
    for file in files:
        for name, weight in load(tmp_path / "parts" / file).items():
            assert index["weight_map"][name] == file and np.array_equal(weight, whole[name])


def test_tied_embeddings_have_no_head(tmp_path):
    init.make(tmp_path / "t", replace(SHAPE, tie_word_embeddings=True), 0, "float32")
    assert "lm_head.weight" not in load(tmp_path / "t" / "model.safetensors")


@given(st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**100), max_value=2.0**100), min_size=1))
def test_bfloat16_rounds_to_nearest_even(values):
    x = np.array(values, np.float32)
    bits = np.frombuffer(init.to_bytes(x, "bfloat16"), "<u2").astype(np.uint32)
    got = (bits << 16).view(np.float32)
    for value, near, code in zip(x.astype(float), got.astype(float), bits, strict=True):
        step = [
            float((np.uint32(c) << np.uint32(16)).view(np.float32))
            for c in (int(code) - 1, int(code) + 1)
            if 0 <= c < 1 << 16
        ]
        others = [abs(s - value) for s in step if not math.isnan(s)]
        assert abs(near - value) <= min(others)
        if abs(near - value) in others:
            assert code % 2 == 0


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="heads"):
        init.make(tmp_path / "x", replace(SHAPE, num_key_value_heads=3), 0, "float32")
    with pytest.raises(UserError, match="none of tokenizer.json"):
        init.make(tmp_path / "x", SHAPE, 0, "float32", tmp_path)
    assert not (tmp_path / "x").exists()


def test_presets_have_the_sizes_they_are_named_for():
    def parameters(name):
        s = init.PRESETS[name]
        kv = s.hidden_size // s.num_attention_heads * s.num_key_value_heads
        layer = 2 * s.hidden_size * (s.hidden_size + kv) + 3 * s.hidden_size * s.intermediate_size
        return s.num_hidden_layers * layer + (1 if s.tie_word_embeddings else 2) * s.vocab_size * s.hidden_size

    for name, low, high in (
        ("mini-student", 5e5, 7e5),
        ("mini-teacher", 1.5e6, 2e6),
        ("openpangu-1b", 1e9, 1.5e9),
        ("openpangu-7b", 6.5e9, 8.5e9),
    ):
        assert low < parameters(name) < high, name
