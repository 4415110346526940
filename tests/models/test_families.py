"""What it takes to add a family."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

import npd_ascend
from npd_ascend.errors import UserError
from npd_ascend.models import families
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.models.mapping import rules
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import checked

PACKAGE = Path(npd_ascend.__file__).parent
MINE = '''
from dataclasses import replace
from npd_ascend.models.families import family

@family("mine", "MineForCausalLM", defaults={"head_dim": 32})
def mine(spec, config):
    """Biases of Qwen2, norms of Qwen3."""
    return replace(spec, qkv_bias=True, qk_norm=True)
'''


def test_one_file_of_a_users_package(tmp_path, configs, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)

    def load():
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    monkeypatch.setattr(families, "_FAMILIES", families.families())
    config = {k: v for k, v in configs["qwen2"].items() if k != "architectures"} | {"model_type": "mine"}
    with pytest.raises(UserError, match="'mine' is not supported; supported are llama, mistral, PanguEmbedded, qwen2"):
        ModelSpec.from_config(config, {}, "x")
    monkeypatch.setattr(families, "entry_points", lambda group: [SimpleNamespace(load=load)][: group == (
        "npd_ascend.families")])
    spec = initial_checkpoint(tmp_path / "model", config)
    assert (spec.head_dim, spec.qk_norm, spec.qkv_bias, spec.o_bias) == (32, True, True, False)
    assert ModelSpec.from_folder(tmp_path / "model") == spec
    assert set(checked(spec, tmp_path / "model")) == {n for r in rules(spec) for n in r.hf}
    assert "MineForCausalLM" in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_a_family_is_named_in_its_own_file_only(name):
    named = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")
             if f'"{name}"' in p.read_text() or f"'{name}'" in p.read_text()}
    assert named == {f"models/families/{name}.py"}
