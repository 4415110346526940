"""``npd prune``: options, texts as the model sees them, and the whole command on a tiny pair."""

from __future__ import annotations

import json

import numpy as np
import pytest
from zoo.models_of import Model, build

from npd_ascend import cli
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.ops.pruning import _tokens, prune_checkpoint

TEXTS = [{"prompt": "How many clips 3?", "response": "48"}, {"prompt": "How many clips 4?"}]


@pytest.fixture
def source(tmp_path):
    build(tmp_path / "teacher", Model("llama", 4, "chatml", tied=True, sharded=True), 0, 0.11)
    return tmp_path / "teacher"


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return tmp_path / "texts.jsonl"


def test_texts_are_conversations(source, texts):
    tokenizer = load_tokenizer(source)
    template = Template(tokenizer, "auto", eos_token_ids(source, tokenizer))
    heads = template.render([[{"role": "user", "content": row["prompt"]}] for row in TEXTS])
    answered, alone = _tokens(source, texts, 10, 1000)
    assert tokenizer.decode(answered).startswith(heads[0] + "48") and answered[-1] == template.end_ids[-1]
    assert tokenizer.decode(alone) == heads[1]
    assert [len(t) for t in _tokens(source, texts, 1, 5)] == [5]


@pytest.mark.parametrize(
    ("keep", "layers", "with_texts", "message"),
    [
        (None, None, True, "either --keep N"),
        (2, "0,1", True, "either --keep N"),
        (2, None, False, "needs --texts"),
        (9, None, True, "has 4 layers"),
        (0, None, True, "has 4 layers"),
        (None, "0;1", False, "commas"),
        (None, "0,4", False, "there is no layer 4"),
    ],
)
def test_options(source, texts, tmp_path, keep, layers, with_texts, message):
    with pytest.raises(UserError, match=message):
        prune_checkpoint(source, tmp_path / "out", keep, layers, texts if with_texts else None, 8)
    assert not (tmp_path / "out").exists()


def test_layers_need_no_engine(source, tmp_path):
    said = prune_checkpoint(source, tmp_path / "out", None, "0,2", None, 8)
    assert "layers 0,2 of 4" in said and check_checkpoint(tmp_path / "out").num_layers == 2


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.parametrize("family", ["PanguEmbedded", "qwen3"])
def test_command_and_doctor(family, tmp_path, texts, monkeypatch, capsys):
    """The layer that was emptied goes; the result is a student that ``npd doctor`` has nothing to say against."""
    pytest.importorskip("mindspore")
    from npd_ascend.models.tensorfile import entries
    from npd_ascend.models.weights import rewrite
    from npd_ascend.ops.doctor import visit

    source = tmp_path / "teacher"
    build(source, Model(family, 3, "chatml"), 0, 0.11)
    found = entries(source)

    def emptied(name: str) -> np.ndarray:
        gone = name in (f"model.layers.1.{part}.weight" for part in ("self_attn.o_proj", "mlp.down_proj"))
        gone = gone or name == "model.layers.1.self_attn.o_proj.bias"
        return np.zeros(found[name].shape, np.float32) if gone else found[name].read()

    rewrite(source, source, found, None, emptied)
    monkeypatch.setattr(
        "sys.argv",
        ["npd", "prune", str(source), "--keep", "2", "--texts", str(texts), "--out", str(tmp_path / "student")],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "layers 0,2 of 3" in capsys.readouterr().out
    record = json.loads((tmp_path / "student" / "pruning.json").read_text())
    assert record["block_influence"][1] == pytest.approx(0, abs=1e-6)
    config = tmp_path / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "run": {"dir": str(tmp_path / "run")},
                "data": {"prompts": [str(texts)]},
                "rollout": {"max_new_tokens": 64},
                "models": {"teacher": str(source), "student": str(tmp_path / "student")},
            }
        )
    )
    wrong = [
        f
        for f in visit(config, None, False, False, False, tmp_path / "smoke")
        if f.level == "error" and str(tmp_path) in f.what
    ]
    assert not wrong, wrong
