"""What is read never runs: no pickles, no evaluation, no shell, no remote code unless asked for."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import npd_ascend
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models.tensorfile import entries
from npd_ascend.pipeline.checks import check_config

PACKAGE = Path(npd_ascend.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("ms", "load_checkpoint"),
              ("mindspore", "load_checkpoint")}  # fmt: skip


def offences(source: str) -> list[str]:
    """Dangerous imports and calls in Python source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Name) and f.id in CALLS:
                found.append(f.id)
            if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and (f.value.id, f.attr) in ATTRIBUTES:
                found.append(f"{f.value.id}.{f.attr}")
            found += [
                f"{k.arg}"
                for k in node.keywords
                if k.arg in ("shell", "allow_pickle") and getattr(k.value, "value", True)
            ]
    return found


def test_the_package_has_none_of_it():
    assert {str(p): o for p in PACKAGE.rglob("*.py") if (o := offences(p.read_text()))} == {}


def test_the_search_finds_them():
    source = "import pickle\nfrom dill import x\neval('1')\nnp.load('f', allow_pickle=True)\nos.system('x')"
    assert offences(source) == ["pickle", "dill", "eval", "allow_pickle", "os.system"]


def test_code_that_a_checkpoint_brings_is_not_run(kit, tmp_path):
    """Not by the tokenizer, not by looking at the checkpoint; a tokenizer that cannot do without is refused."""
    for folder in (kit.student, kit.teacher):
        (folder / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
        for name in ("tokenizer_config.json", "config.json"):
            kit.edit(
                folder / name,
                lambda c: c.update(
                    auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None], "AutoConfig": "tokenization_evil.Evil"}
                ),
            )
    check_config(kit.config())
    load_tokenizer(kit.student)
    (kit.student / "tokenizer.json").unlink()
    (kit.student / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError):
        load_tokenizer(kit.student)
    assert not (tmp_path / "ran").exists()


def test_weights_in_pickles_are_refused(kit):
    (kit.student / "model.safetensors").rename(kit.student / "pytorch_model.bin")
    with pytest.raises(UserError, match="refused"):
        entries(kit.student)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_cannot_lead_out(kit, name):
    (kit.student / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="leads out of the folder|is missing"):
        entries(kit.student)
