"""The tests that a user runs on own models: that they pass on sound models, and fail on what they are there to find."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npd_ascend.config.job import Device
from npd_ascend.config.load import load_config, parse_config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor import visit
from npd_ascend.ops.doctor.selftest import engine, judge, selftest
from npd_ascend.ops.doctor.steps import Steps
from npd_ascend.ops.selftest import TOLERANCE, distance, sequences, tolerance
from npd_ascend.ops.smoke import small, smoke
from npd_ascend.sync.registry import policy_of

ROOT = Path(__file__).resolve().parents[2]
needs_engines = pytest.mark.usefixtures("engines")


def tiny(tmp_path, **student):
    """Teacher and student of random weights."""
    from npd_ascend.models.initial import initial_checkpoint

    shape = {"model_type": "PanguEmbedded", "bias": True, "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64,
             "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 1e4,
             "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2}  # fmt: skip
    for seed, (name, change) in enumerate((("teacher", {}), ("student", {"num_hidden_layers": 1, **student}))):
        initial_checkpoint(tmp_path / name, {**shape, **change}, seed=seed, std=0.15, norm_std=0.1, bias_std=0.2)
    return parse_config(
        {
            "run": {"dir": str(tmp_path / "run")},
            "data": {"prompts": ["x"]},
            "models": {n: str(tmp_path / n) for n in ("teacher", "student")},
        },
        "test",
    )


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

    def engine(python, module, job, steps):
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
    assert on_npu.train.data_parallel == on_npu.train.global_batch == 8 and policy_of(on_npu).span(0, 0.0).end == 1.0
    rows = small(
        paper(train={"data_parallel": 1, "context_parallel": 3}, pack={"row_length": 96}),
        tmp_path,
        {"target": "ascend", "dtype": "bfloat16"},
    )
    assert rows.train.context_parallel == 3 and rows.pack.row_length == 2064
    on_cpu = small(c, tmp_path, {"target": "cpu", "dtype": "auto"})
    assert on_cpu.train.data_parallel == 1
    assert on_cpu.pack.row_length >= on_cpu.data.max_prompt_tokens + on_cpu.rollout.max_new_tokens


@needs_engines
def test_a_process_that_stops_is_an_error(tmp_path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"student": str(tmp_path / "none"), "teacher": "x"}))
    (found,) = engine(Environments.find().rollout, "npd_ascend.ops.hf_logits", job, Steps())
    assert found.level == "error" and "no config.json" in found.what


def test_what_is_at_work_is_told_as_it_begins_with_the_time(tmp_path):
    """Before it ends: the process waits for the line to arrive."""
    program = tmp_path / "python"
    program.write_text("""#!/bin/sh
echo '{"begins": "rows"}'
while ! [ -e "$3.seen" ]; do sleep 0.05; done
echo '{"name": "rows", "value": 0.0, "limit": 1.0}'
""")
    program.chmod(0o755)
    job = tmp_path / "job"

    lines = []

    def message(text):
        lines.append(text)
        if "still at rows" in text:
            (tmp_path / "job.seen").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npd_ascend.ops.doctor.steps.message", message)
        patch.setattr("npd_ascend.ops.doctor.steps._EVERY_S", 0.1)
        with Steps(3) as steps:
            (found,) = engine(program, "m", job, steps)
    assert found.level == "ok"
    first, *going_on, last = (re.sub(r"^\d+:\d\d  ", "", line) for line in lines)
    assert first == "[1/3] rows ..." and "  still at rows, 0 s so far" in going_on
    assert "  ok: test: rows (0, at most 1)" in (last, going_on[-1])


@pytest.mark.slow
@needs_engines
def test_sound_models_pass(tmp_path):
    """Of two families: q/k norms and YaRN in the student."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    found = selftest(
        tiny(tmp_path, tie_word_embeddings=True, vocab_size=103, model_type="qwen3", head_dim=16, rope_scaling=yarn)
    )
    assert [f.what for f in found if f.level != "ok"] == []
    assert len(found) == 12


def enlarge(folder):
    """Hidden states that reach tens of thousands, as some trained models have them: one dimension of the residual
    stream is blown up by the first layer, and the last norm takes it back."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"][5] *= 3e4
    tensors["model.norm.weight"] *= 100
    save_file(tensors, path)


@pytest.fixture(scope="module", params=["usual", "large"])
def examined(request, tmp_path_factory, engines):
    """The tests of a student of usual or of large hidden states, with its reference; its folder."""
    from npd_ascend.ops.selftest import Selftest

    root = tmp_path_factory.mktemp(request.param)
    config = tiny(root, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4)
    student, reference = config.models.student, root / "reference.npz"
    if request.param == "large":
        enlarge(student)
    job = root / "job.json"
    job.write_text(
        json.dumps(
            {
                "student": str(student),
                "teacher": str(config.models.teacher),
                "device": {"dtype": "float32"},
                "reference": str(reference),
            }
        )
    )
    assert engine(engines.rollout, "npd_ascend.ops.hf_logits", job, Steps()) == []
    return Selftest(config.models.teacher, student, Device(), 128, reference), student, reference, request.param


def compared(test, capsys):
    """The finding on transformers."""
    capsys.readouterr()
    test._reference()
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


LAYER = "model.layers.1."
FAULTS = {
    "two rows exchanged": lambda t: t[LAYER + "self_attn.q_proj.weight"].__setitem__(
        [0, 1], t[LAYER + "self_attn.q_proj.weight"][[1, 0]]
    ),
    "a matrix transposed": lambda t: t.update(
        {LAYER + "self_attn.o_proj.weight": np.ascontiguousarray(t[LAYER + "self_attn.o_proj.weight"].T)}
    ),
    "gate for up": lambda t: t.update({LAYER + "mlp.gate_proj.weight": t[LAYER + "mlp.up_proj.weight"]}),
    "a bias left out": lambda t: t[LAYER + "self_attn.q_proj.bias"].fill(0),
    "a norm of another layer": lambda t: t.update(
        {LAYER + "input_layernorm.weight": t["model.layers.2.input_layernorm.weight"]}
    ),
}


@pytest.mark.slow
@pytest.mark.mindspore
def test_sound_models_are_within_what_their_type_lets_them(examined, capsys):
    test, _, reference, kind = examined
    with np.load(reference) as found:
        own = max(np.abs(found[f"s{i}"] - found[f"e{i}"]).max() for i in range(len(test.texts)))
    assert test.tolerance == max(1e-4, 4 * own)
    assert (test.tolerance > 3e-4) == (kind == "large")
    said = compared(test, capsys)
    assert said["value"] <= said["limit"] == test.tolerance
    test._packing()
    packing = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(packing) == 2 and all(x["value"] <= x["limit"] == test.tolerance for x in packing)


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.parametrize("fault", FAULTS)
def test_a_network_that_is_not_the_checkpoint_is_found(examined, capsys, tmp_path, fault):
    from npd_ascend.models.weights import load_hf

    test, student, _, _ = examined
    shutil.copytree(student, tmp_path / "bad")
    tensors = load_file(student / "model.safetensors")
    FAULTS[fault](tensors)
    save_file(tensors, tmp_path / "bad" / "model.safetensors")
    sound = test.packed
    try:
        load_hf(test.net, tmp_path / "bad")
        test.packed = test._hidden(test.net, [test.texts])
        said = compared(test, capsys)
    finally:
        test.packed = sound
        load_hf(test.net, student)
    assert said["value"] > said["limit"], said


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.parametrize("change", [{"rope_theta": 1.05e4}, {"rms_norm_eps": 3e-4}])
def test_a_network_of_another_config_is_found(examined, capsys, tmp_path, change):
    from npd_ascend.ops.selftest import Selftest

    test, student, reference, _ = examined
    shutil.copytree(student, tmp_path / "bad")
    config = json.loads((student / "config.json").read_text())
    (tmp_path / "bad" / "config.json").write_text(json.dumps({**config, **change}))
    said = compared(Selftest(test.teacher, tmp_path / "bad", Device(), 128, reference), capsys)
    assert said["value"] > said["limit"], said


def test_tolerance_grows_with_what_the_type_costs_but_not_without_end():
    assert tolerance("float32", 1e-6) == TOLERANCE["float32"]
    assert tolerance("float32", 9e-4) == pytest.approx(3.6e-3)
    assert tolerance("float32", 1.0) == 0.05 and tolerance("bfloat16", 9.0) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_engines
def test_smoke_without_an_npu(tmp_path):
    found = smoke(
        load_config(
            ROOT / "configs" / "mini.yaml",
            [f"models.{n}={ROOT}/assets/mini/{n}" for n in ("teacher", "student")]
            + [f"data.prompts=[{ROOT}/assets/mini/prompts_train.jsonl]"],
        ),
        tmp_path,
        cpu=True,
    )
    assert [f for f in found if f.level != "ok"] == []
    assert sum("agree on the answers" in f.what for f in found) == 2 and any("training steps" in f.what for f in found)
