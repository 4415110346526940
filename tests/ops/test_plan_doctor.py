"""Estimates from model shapes and prompt files; what the doctor finds."""

import json

import pytest

from npd_ascend.config.load import parse_config
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor import Finding, examine, render
from npd_ascend.ops.environments import Environments, resolve_device
from npd_ascend.ops.plan import estimate
from npd_ascend.ops.plan import render as render_plan

SHAPE = {"model_type": "PanguEmbedded", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(SHAPE))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "x" * 58}) + "\n" for _ in range(100)))

    def make(**sections):
        return parse_config({"run": {"dir": str(tmp_path / "run")}, "data": {"prompts": [str(tmp_path / "p.jsonl")]},
                             "models": {"teacher": str(tmp_path / "m"), "student": str(tmp_path / "m")},
                             "rollout": {"max_new_tokens": 100}, **sections}, "test")  # fmt: skip

    return make


def test_tokens_and_flops(config):
    e = estimate(config())
    by = {s.stage: s for s in e.stages}
    # 100 prompts of a 73-byte line / 3.5 = 20.9 tokens, answers of 50, two generations, ten epochs.
    prompt = 73 / 3.5
    assert by["rollout"].tokens == pytest.approx(2 * 100 * 50)
    assert by["annotate teacher"].tokens == pytest.approx(2 * 100 * (prompt + 2 * 50))
    assert by["train"].tokens == pytest.approx(10 * 100 * (prompt + 50))
    n = 1000 * 64 * 2 + 2 * (64 * (2 * 64 + 2 * 32 + 3 * 128 + 2) + 64 + 64 + 64) + 64
    assert by["train"].flops == pytest.approx(6 * n * by["train"].tokens)
    assert by["annotate teacher"].disk == 2 * 100 * 50 * e.stages[1].disk / (2 * 100 * 50) > 0
    text = render_plan(e)
    assert "(estimate)" in text and "every sample kept" in text


def test_sft_needs_no_teacher(config):
    e = estimate(config(train={"loss": {"kd_weight": 0}}, select={"metric": "none"}))
    assert [s.stage for s in e.stages] == ["rollout", "train"]


def test_more_paths_cost_more(config):
    one, three = estimate(config()), estimate(config(rollout={"max_new_tokens": 100, "samples": 2}))
    assert three.stages[0].tokens == pytest.approx(3 * one.stages[0].tokens)


def test_missing_prompts(config, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        estimate(config(data={"prompts": [str(tmp_path / "none.jsonl")]}))


def test_ascend_is_refused_without_an_npu(config):
    with pytest.raises(UserError, match="no NPU is visible"):
        resolve_device(config(device={"target": "ascend"}).device)
    with pytest.raises(UserError, match="needs an NPU"):
        resolve_device(config(device={"target": "cpu", "dtype": "bfloat16"}).device)


def test_doctor_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(tmp_path / "nope"))
    findings = examine()
    assert any(f.level == "error" and "NPD_MINDSPORE_PYTHON" in f.what for f in findings)
    with pytest.raises(UserError, match="no such interpreter"):
        Environments.find()


def test_doctor_sees_an_environment_without_packages(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"mindspore": "2.7.0", "mindformers": null, "numpy": "1.26"}\'\n')
    fake.chmod(0o755)
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(fake))
    lines = [f.what for f in examine() if f.level == "error" and f.what.startswith("mindspore environment")]
    assert lines == ["mindspore environment: mindspore 2.7.0, tested with 2.9.0*",
                     "mindspore environment: mindformers is missing"]  # fmt: skip


def test_render():
    text = render([Finding("ok", "a"), Finding("error", "b", "do c")])
    assert text == "ok       a\nERROR    b\n         -> do c"
