"""The tests that a user runs on own models: that they pass on sound models, and fail on what they are there to find."""

import json
from pathlib import Path

import numpy as np
import pytest

from npd_ascend.config.load import load_config, parse_config
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor import visit
from npd_ascend.ops.doctor.selftest import engine, judge, selftest
from npd_ascend.ops.environments import Environments
from npd_ascend.ops.selftest import TOLERANCE, distance, sequences
from npd_ascend.ops.smoke import small, smoke

ROOT = Path(__file__).resolve().parents[2]
needs_engines = pytest.mark.usefixtures("engines")


def tiny(tmp_path, **student):
    """Teacher and student of random weights."""
    from npd_ascend.models.initial import initial_checkpoint

    shape = {"model_type": "PanguEmbedded", "bias": True, "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64,
             "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 1e4,
             "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2}
    for seed, (name, change) in enumerate((("teacher", {}), ("student", {"num_hidden_layers": 1, **student}))):
        initial_checkpoint(tmp_path / name, {**shape, **change}, seed=seed, std=0.15, norm_std=0.1, bias_std=0.2)
    return parse_config({"run": {"dir": str(tmp_path / "run")}, "data": {"prompts": ["x"]},
                         "models": {n: str(tmp_path / n) for n in ("teacher", "student")}}, "test")


def test_a_result_is_judged_by_its_limit():
    assert judge({"name": "a", "value": 0.1, "limit": 0.1}).level == "ok"
    bad = judge({"name": "a", "value": 0.2, "limit": 0.1})
    assert bad.level == "error" and bad.remedy
    assert judge({"name": "a", "value": float("nan"), "limit": 0.1}).level == "error"


def test_sequences_are_the_same_everywhere():
    a, b = sequences(50), sequences(50)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and max(map(np.max, a)) < 50


def test_distance_forgives_rounding_but_no_wrong_position():
    rounding = np.random.default_rng(0).normal(0, 0.04, (30, 5000)).astype(np.float32)
    assert distance(rounding, "float32") > TOLERANCE["bfloat16"] > distance(rounding, "bfloat16")
    rounding[7] *= 20  # one position that saw what it should not
    assert distance(rounding, "bfloat16") > TOLERANCE["bfloat16"]
    assert distance(np.array([0.0, -0.3, 0.1]), "float32") == pytest.approx(0.3)


def test_both_environments_see_the_jobs(tmp_path, monkeypatch):
    """The rollout environment may be another container, which shares the folder of runs and not /tmp."""
    from npd_ascend.ops.doctor import selftest as room

    seen = []
    def engine(python, module, job):
        seen.append((job, json.loads(job.read_text())))
        return []

    monkeypatch.setattr(room, "engine", engine)
    config, runs = tiny(tmp_path), tmp_path / "new" / "runs"
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": runs / "a"})})
    assert room.selftest(config) == [] and len(seen) == 2
    for job, said in seen:
        assert job.parent.parent == Path(said["reference"]).parent.parent == runs
    assert not list(runs.iterdir())


def test_what_needs_a_configuration_says_so():
    with pytest.raises(UserError, match="need a configuration"):
        visit(None, selftest=True)


def test_smoke_is_refused_without_an_npu(config, tmp_path):
    with pytest.raises(UserError, match="--smoke --cpu"):
        smoke(config(), tmp_path)


def test_small_keeps_models_and_shrinks_the_rest(paper, tmp_path):
    c = paper()
    on_npu = small(c, tmp_path, {"target": "ascend", "dtype": "bfloat16"})
    assert on_npu.models == c.models and on_npu.data.limit == 16
    assert on_npu.pack.row_length == on_npu.annotate.row_length == 2048
    assert on_npu.train.data_parallel == on_npu.train.global_batch == 8 and on_npu.sync_points() == [1.0]
    rows = small(paper(train={"data_parallel": 1, "context_parallel": 3}, pack={"row_length": 96}), tmp_path,
                 {"target": "ascend", "dtype": "bfloat16"})
    assert rows.train.context_parallel == 3 and rows.pack.row_length == 2064
    on_cpu = small(c, tmp_path, {"target": "cpu", "dtype": "auto"})
    assert on_cpu.train.data_parallel == 1
    assert on_cpu.pack.row_length >= on_cpu.data.max_prompt_tokens + on_cpu.rollout.max_new_tokens


@needs_engines
def test_a_process_that_stops_is_an_error(tmp_path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"student": str(tmp_path / "none"), "teacher": "x"}))
    (found,) = engine(Environments.find().rollout, "npd_ascend.ops.hf_logits", job)
    assert found.level == "error" and "no config.json" in found.what


@pytest.mark.slow
@needs_engines
def test_sound_models_pass(tmp_path):
    found = selftest(tiny(tmp_path, tie_word_embeddings=True, vocab_size=103))
    assert [f.what for f in found if f.level != "ok"] == []
    assert len(found) == 12


@pytest.mark.slow
@needs_engines
def test_weights_that_are_not_those_of_the_reference_fail(tmp_path, monkeypatch):
    """The reference is computed from other weights: exactly the comparison with transformers must fail."""
    import npd_ascend.ops.doctor.selftest as module

    config = tiny(tmp_path)
    other = tiny(tmp_path / "other", num_hidden_layers=1, rms_norm_eps=1e-3)

    def swapped(python, name, job):
        if name.endswith("hf_logits"):
            text = json.loads(job.read_text())
            job.write_text(json.dumps({**text, "student": str(other.models.student)}))
            found = engine(python, name, job)
            job.write_text(json.dumps(text))
            return found
        return engine(python, name, job)

    monkeypatch.setattr(module, "engine", swapped)
    bad = [f.what for f in selftest(config) if f.level != "ok"]
    assert len(bad) == 1 and "transformers" in bad[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_engines
def test_smoke_without_an_npu(tmp_path):
    found = smoke(load_config(ROOT / "configs" / "mini.yaml", [f"models.{n}={ROOT}/assets/mini/{n}" for n in (
        "teacher", "student")] + [f"data.prompts=[{ROOT}/assets/mini/prompts_train.jsonl]"]), tmp_path, cpu=True)
    assert [f for f in found if f.level != "ok"] == []
    assert sum("agree on the answers" in f.what for f in found) == 2 and any("training steps" in f.what for f in found)
