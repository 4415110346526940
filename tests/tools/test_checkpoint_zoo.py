"""Members of the zoo from end to end, and that the tour finds what is wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import checkpoint_zoo
import numpy as np
import pytest
from zoo.members import MEMBERS
from zoo.models_of import Model, build, circle
from zoo.tokenizers_of import KINDS
from zoo.trial import STAGES, Findings, Trial, Wrong, attempt

from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import entries
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir

SOUND = ("pangu-tied", "qwen-base-instruct", "llama-smollm", "llama-transformers-5")


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.timeout(900)
class TestTour:
    """With the real command, vLLM, MindFormers and transformers."""

    @pytest.mark.parametrize("name", SOUND)
    def test_sound_member(self, name, engines, tmp_path):
        found = attempt(MEMBERS[name], tmp_path)
        assert found.cells == dict.fromkeys(STAGES, "ok"), found
        if name == "qwen-base-instruct":
            self.as_released(tmp_path)

        said = tmp_path / "run" / "export" / "generation_config.json"
        said.write_text(json.dumps({**json.loads(said.read_text()), "eos_token_id": 7}))
        with pytest.raises(Wrong, match="generation_config.json says 7"):
            Trial(MEMBERS[name], tmp_path).export()

    def as_released(self, folder):
        """An Instruct teacher and a base student: two ends, two templates. The run says how it takes them, and what it
        leaves behind says where the student ends, which the student's own files do not."""
        said = (folder / "run.out").read_text()
        assert "the teacher's" in said and "renders the input of both models" in said and "stop tokens differ" in said
        tokenizers = {name: load_tokenizer(folder / name) for name in ("student", "teacher")}
        end, text = tokenizers["student"].convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
        assert json.loads((folder / "student" / "generation_config.json").read_text())["eos_token_id"] == text
        run = RunDir(folder / "run")
        for generation in (0, 1):
            for answer in Dataset.open(run.generation(generation).rollouts, "rollouts").read_all().to_pylist():
                assert answer["finish_reason"] == "stop" and answer["response_ids"][-1] == end
                assert text not in answer["response_ids"]
        for out in (run.generation(1).next_snapshot, run.export):
            for name in ("config.json", "generation_config.json"):
                assert json.loads((out / name).read_text())["eos_token_id"] == [end, text]
            tokenizer = load_tokenizer(out)
            assert tokenizer.eos_token == "<|im_end|>"
            assert tokenizer.chat_template == tokenizers["teacher"].chat_template

    def test_damaged_member(self, engines, tmp_path):
        found = attempt(MEMBERS["shard-missing"], tmp_path)
        assert found.cells == dict.fromkeys(STAGES, "") | {"doctor": "refused", "run": "refused"}, found

    def test_another_refusal_than_the_expected_one_is_found(self, engines, tmp_path):
        found = attempt(replace(MEMBERS["pickled"], refused="something else"), tmp_path)
        assert found.cells["doctor"].startswith("WRONG") and "pickled weights" in found.cells["doctor"]
        assert not found.sound and not (tmp_path / "run").exists()


def test_what_is_sound():
    cells = dict.fromkeys(STAGES, "ok")
    assert Findings(cells).sound and Findings({**cells, "doctor": "ok (values are not read)", "run": "refused"}).sound
    assert not Findings({**cells, "export": "WRONG: its tensors are not the student's"}).sound


def test_members_cover_what_they_should():
    sound = [m for m in MEMBERS.values() if m.refused is None]
    models = [model for m in sound for model in (m.student, m.teacher)]
    assert len(MEMBERS) >= 25 and len(sound) < len(MEMBERS) and set(SOUND) <= {n for n in MEMBERS}
    for what, values in (
        ("family", ("PanguEmbedded", "llama", "qwen2")),
        ("layers", (2, 3, 12, 26, 32)),
        ("tied", (True, False)),
        ("dtype", ("float32", "bfloat16", "float16")),
        ("saver", ("4", "5", "own")),
        ("sharded", (True, False)),
        ("tokenizer", tuple(KINDS)),
    ):
        assert set(values) <= {getattr(m, what) for m in models}, what
    wider = {np.sign(m.teacher.padding - m.student.padding) for m in sound}
    assert wider == {-1, 0, 1}


@pytest.mark.parametrize("tokenizer", KINDS)
def test_circle_is_of_distinct_tokens(tokenizer, tmp_path):
    follow = circle(KINDS[tokenizer](tmp_path / "t"))
    assert len(set(follow[:-1])) == 5 and follow[-1] == follow[1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_member_follows_its_circle(tied, tmp_path):
    """Embedding, the memory of the first layer and the head, without the rest: each token leads to the next."""
    model = Model("llama", 2, "chatml", tied=tied, dtype="bfloat16", sharded=True)
    follow = build(tmp_path / "m", model, 0, 0.11)
    found = {name: e.read() for name, e in entries(tmp_path / "m").items()}
    assert ModelSpec.from_folder(tmp_path / "m").tie_embeddings == tied and ("lm_head.weight" in found) == (not tied)
    gate, up, down = (found[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
    table = found["model.embed_tokens.weight"]
    x = table[follow[:-1]]
    h = x / np.sqrt((x**2).mean(-1, keepdims=True))
    g = h @ gate.T
    x = x + (g / (1 + np.exp(-g)) * (h @ up.T)) @ down.T
    assert (x @ found.get("lm_head.weight", table).T).argmax(-1).tolist() == follow[1:]


def test_finished_members_are_kept_and_a_wrong_one_fails_the_tour(tmp_path, monkeypatch, capsys):
    cells = dict.fromkeys(STAGES, "ok")
    results = {
        "pangu-tied": {
            "cells": cells,
            "figures": {"gap 0": 1e-7, "gap 1": 3e-6, "moved": 0.25},
            "sound": True,
            "seconds": 60.0,
            "cpu": 71.4,
        }
    }
    (tmp_path / "zoo.json").write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", ["checkpoint_zoo.py", "--out", str(tmp_path), "--only", "pangu-tied"])
    with pytest.raises(SystemExit) as e:
        checkpoint_zoo.main()
    out = capsys.readouterr().out
    assert not e.value.code and not (tmp_path / "pangu-tied").exists()
    assert "| ok | ok | ok | ok | ok | 60 | 71 |" in out and "3.0e-06 nats" in out

    wrong = Findings({**cells, "run": "WRONG: exit code 1"})
    monkeypatch.setattr(checkpoint_zoo, "attempt", lambda *_: wrong)
    monkeypatch.setattr(sys, "argv", ["checkpoint_zoo.py", "--out", str(tmp_path), "--only", "pickled", "pangu-tied"])
    with pytest.raises(SystemExit) as e:
        checkpoint_zoo.main()
    assert e.value.code and "WRONG: exit code 1" in (tmp_path / "zoo.md").read_text()
    assert json.loads((tmp_path / "zoo.json").read_text()).keys() == {"pangu-tied", "pickled"}
