"""What it takes to add a family."""

import sys
from pathlib import Path

import pytest

import npd_ascend
from npd_ascend.errors import UserError
from npd_ascend.models.families import FAMILIES, supported
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


def test_an_entry_point_of_a_users_package(tmp_path, configs, monkeypatch):
    config = {k: v for k, v in configs["qwen2"].items() if k != "architectures"} | {"model_type": "mine"}
    with pytest.raises(UserError, match="'mine' is not supported; supported are llama, mistral, PanguEmbedded, qwen2"):
        ModelSpec.from_config(config, {}, "x")
    (tmp_path / "my_family.py").write_text(MINE)
    info = tmp_path / "my_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[npd_ascend.families]\nmine = my_family:mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_family", raising=False)
    spec = initial_checkpoint(tmp_path / "model", config)
    assert (spec.head_dim, spec.qk_norm, spec.qkv_bias, spec.o_bias) == (32, True, True, False)
    assert ModelSpec.from_folder(tmp_path / "model") == spec
    assert set(checked(spec, tmp_path / "model")) == {n for r in rules(spec) for n in r.hf}
    assert "MineForCausalLM" in (tmp_path / "model" / "config.json").read_text()
    assert supported() == ["llama", "mistral", "PanguEmbedded", "qwen2", "qwen3", "mine"]
    for name, near in {"minee": "mine", "qwen2.5": "qwen2", "pangu_embedded": "PanguEmbedded"}.items():
        with pytest.raises(UserError, match=f"'{name}' is not supported; did you mean {near}. supported are"):
            ModelSpec.from_config(config | {"model_type": name}, {}, "x")


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "antigravity",
        "antigravity:fly",
        "Llama",
        "pangu_embedded",
        "",
        None,
        3,
        ["llama"],
        "__init__",
        "..hf_config",
    ],
)
def test_a_checkpoint_names_no_code_and_nothing_but_a_model_type(name, configs):
    with pytest.raises(UserError, match=r"^x: model_type .* is not supported"):
        ModelSpec.from_config(configs["llama"] | {"model_type": name}, {}, "x")
    assert "antigravity" not in sys.modules


def test_families_are_files_called_like_their_model_type():
    assert {name: f.model_type for name, f in FAMILIES.all().items()} == {
        "llama": "llama",
        "mistral": "mistral",
        "panguembedded": "PanguEmbedded",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
    }


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_a_family_is_named_in_its_own_file_only(name):
    named = {
        p.relative_to(PACKAGE).as_posix()
        for p in PACKAGE.rglob("*.py")
        if f'"{name}"' in p.read_text() or f"'{name}'" in p.read_text()
    }
    assert named == {f"models/families/{name}.py"}
