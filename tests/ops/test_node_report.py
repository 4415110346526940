"""The first hour on a node: parts that fail alone, resuming, the page, and all measurements on a CPU."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from npd_ascend.commands import app
from npd_ascend.config import load_config
from npd_ascend.errors import UserError
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.ops.node_report import PARTS, REPORT, node_report, parts
from npd_ascend.ops.node_report.lines import Lines, read
from npd_ascend.ops.plan.calibrate import Calibration
from npd_ascend.ops.plan.paces import INPUTS

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"model_type": "PanguEmbedded", "bias": True, "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64,
         "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e4,
         "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2,
         "tie_word_embeddings": True}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """A configuration over one tiny model; without the student's annotation, whose measurement is the teacher's."""
    initial_checkpoint(tmp_path / "model", SHAPE, std=0.15, norm_std=0.1, bias_std=0.2)
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"dir": str(tmp_path / "run")},
                "models": dict.fromkeys(("teacher", "student"), str(tmp_path / "model")),
                "data": {"prompts": [str(tmp_path / "p.jsonl")]},
                "rollout": {"max_num_seqs": 16, "kv_cache_gib": 0.05, "max_new_tokens": 16},
                "annotate": {"row_length": 256, "k": 3, "vocab_chunk_rows": 64},
                "select": {"filter": "none"},
                "pack": {"row_length": 256},
                "train": {"global_batch": 2, "micro_batch": 1, "vocab_chunk_rows": 64},
            }
        )
    )
    return path


def report_of(folder):
    return json.loads((folder / REPORT).read_text())


@pytest.fixture
def stand_in(monkeypatch):
    """Parts without engines: one that ends well, one that raises, one with a line and a finding that failed."""
    calls = []

    def part(name, result):
        def run(setting):
            calls.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return parts.Part(f"what {name} does", "nothing", run)

    good = {"lines": [{"name": "a", "ms": 1.0}]}
    bad = {"lines": [{"name": "a", "error": "no kernel"}, {"name": "b", "ms": 2.0}], "findings": [["error", "odd", ""]]}
    made = {"one": part("one", good), "two": part("two", ValueError("broken\nmore")), "three": part("three", bad)}
    for name in list(PARTS):
        monkeypatch.delitem(PARTS, name)
    PARTS.update(made)
    yield calls
    for name in made:
        PARTS.pop(name, None)


def take(file, out, **more):
    return node_report(load_config(file), out, path=file, overrides=[], cpu=True, **more)


def test_a_part_fails_alone_and_is_taken_again(file, tmp_path, stand_in):
    out = tmp_path / "out"
    findings = take(file, out)
    assert stand_in == ["one", "two", "three"] and [f.level for f in findings] == ["ok", "error", "error", "ok"]
    report = report_of(out)
    assert {n: p["status"] for n, p in report["parts"].items()} == {"one": "done", "two": "failed", "three": "failed"}
    assert report["parts"]["two"]["errors"] == ["ValueError: broken"]
    assert report["parts"]["three"]["errors"] == ["no kernel", "odd"] and "(and 1 more)" in findings[2].what
    page = (out / "node_report.html").read_text()
    assert "what two does" in page and "no kernel" in page and not re.search(r"(src|href)=\"(?!#)", page)
    take(file, out)
    assert stand_in == ["one", "two", "three", "two", "three"]
    take(file, out, only=["one"])  # is there
    assert len(stand_in) == 5


def test_what_is_refused(file, tmp_path, stand_in):
    with pytest.raises(UserError, match="--part tow: there is no such part; did you mean two"):
        take(file, tmp_path / "out", only=["tow"])
    with pytest.raises(UserError, match="--node-report measures NPUs and none is visible"):
        node_report(load_config(file), tmp_path / "out", path=file, overrides=[])
    assert not (tmp_path / "out").exists() and not stand_in
    take(file, tmp_path / "out")
    other = load_config(file, ["rollout.max_num_seqs=8"])
    with pytest.raises(UserError, match="of another configuration, device or version"):
        node_report(other, tmp_path / "out", path=file, overrides=[], cpu=True)
    assert CliRunner().invoke(app, ["doctor", "--node-report", "x"]).exit_code


def test_lines_outlive_a_crash(tmp_path):
    lines = Lines(tmp_path / "l")
    lines.take("a", lambda: {"ms": 1.0})
    lines.take("b", lambda: {"ms": 1 / 0})
    (tmp_path / "l").write_text((tmp_path / "l").read_text() + '{"name": "torn')
    assert read(tmp_path / "l") == [
        {"name": "a", "ms": 1.0},
        {"name": "b", "error": "ZeroDivisionError: division by zero"},
    ]
    Lines(None).take("c", lambda: {"ms": 1.0})
    assert read(tmp_path / "none") == []


def test_what_the_plan_says_is_measured_is_measured():
    assert {i.settled_by for i in INPUTS.values()} - {""} <= set(PARTS)


@pytest.mark.parametrize(
    ("page", "head", "word"),
    [
        ("ascend.md", "What has never run on an NPU", "Settled by"),
        ("ascend.zh.md", "尚未在 NPU 上运行过的部分", "确认"),
    ],
)
def test_each_line_that_has_never_run_names_what_settles_it(page, head, word):
    section = (ROOT / "docs" / page).read_text().split(f"## {head}\n")[1]
    lines = [" ".join(x.split()) for x in section.strip().split("\n\n")[0].removeprefix("* ").split("\n* ")]
    assert len(lines) == 9
    for line in lines:
        assert word in line and "`" in line, line
        assert all(name in PARTS for name in re.findall(r"--part (\w+)", line)), line
    table = (ROOT / "docs" / page).read_text()
    assert all(f"`{name}`" in table for name in PARTS)


def measured(stage, row, rate, start):
    return {"name": stage, "stage": stage, "row_length": row, "tokens_per_second": rate, "start": start}


def test_calibration_from_a_report(tmp_path):
    report = {
        "layout": {"rollout": 8, "annotate_teacher": 4, "annotate_student": 2, "keep_alive": True},
        "parts": {
            "annotate": {
                "lines": [
                    measured("annotate teacher", 4096, 50.0, 7.0),
                    measured("annotate teacher", 8192, 100.0, 9.0),
                    {"name": "annotate student", "error": "out of memory"},
                ]
            },
            "train": {"lines": [measured("train", 8192, 1000.0, 60.0)]},
            "rollout": {
                "lines": [
                    {"name": "engine start", "seconds": 40.0},
                    {"name": "d", "sequences": 8, "tokens_per_second": 10.0},
                    {"name": "d", "sequences": 128, "tokens_per_second": 500.0},
                    {"name": "reload", "to_seconds": 3.0},
                ]
            },
        },
    }
    (tmp_path / REPORT).write_text(json.dumps(report))
    rates = Calibration.from_run(tmp_path)
    assert rates.seconds("annotate_teacher", 4000, 2) == pytest.approx(18 + 4000 / 400)
    assert rates.seconds("annotate_student", 10) is None
    assert rates.seconds("train", 5000) == pytest.approx(60 + 5)
    assert rates.seconds("rollout", 8000, 2) == pytest.approx(40 + 3 + 8000 / 4000)
    assert rates.seconds("evaluate", 8000) == pytest.approx(2)
    (tmp_path / REPORT).write_text(json.dumps({**report, "parts": {}}))
    with pytest.raises(UserError, match="neither decoding nor annotation nor training was measured"):
        Calibration.from_run(tmp_path)
    (tmp_path / REPORT).write_text("[]")
    with pytest.raises(UserError, match="not a node report"):
        Calibration.from_run(tmp_path)


@pytest.mark.slow
@pytest.mark.mindspore
def test_parity_sees_what_a_kernel_does_wrong(tmp_path, monkeypatch):
    """On the CPU's own modules: all within the limit, and a network that saw its neighbours is not."""
    pytest.importorskip("mindspore")
    from npd_ascend.config.job import Device
    from npd_ascend.models.parallel.mesh import DeviceMesh
    from npd_ascend.ops.node_report import bench

    job, mesh = {"device": Device().model_dump(mode="json")}, DeviceMesh(Device())
    bench.parity(job, mesh, Lines(tmp_path / "good"))
    good = read(tmp_path / "good")
    assert len(good) == 3 and all(line["value"] < line["limit"] for line in good)
    right = bench.hidden_states
    monkeypatch.setattr(bench, "hidden_states", lambda spec, w, ids: right(spec, w, np.append(7, ids))[1:])
    bench.parity(job, mesh, Lines(tmp_path / "bad"))
    assert [line["value"] < line["limit"] for line in read(tmp_path / "bad")] == [False, True, True]


@pytest.mark.slow
@pytest.mark.mindspore
def test_measurements_on_a_cpu(file, tmp_path, engines, monkeypatch):
    """Each at its sizes, with both environments; mint.topk, which the CPU lacks, fails alone. What imports MindFormers
    runs in this process, which has it already."""
    pytest.importorskip("mindspore")
    from npd_ascend.ops.node_report import bench

    def wait(command, setting, python, log, elsewhere=parts._wait):
        if command[-2] != bench.__name__:
            return elsewhere(command, setting, python, log)
        monkeypatch.setattr(sys, "argv", command[-2:])
        bench.main()
        return 0

    def sizes(setting, stage, every=parts._sizes):
        return every(setting, stage)[: 1 if stage == "train" else None]  # compiling training takes longest

    monkeypatch.setattr(parts, "_wait", wait)
    monkeypatch.setattr(parts, "_sizes", sizes)
    out = tmp_path / "out"
    chosen = ["topk", "hccl", "annotate", "train", "rollout"]
    asked = ["doctor", str(file), "--node-report", str(out), "--cpu", *(x for name in chosen for x in ("--part", name))]
    done = CliRunner().invoke(app, asked)
    report = report_of(out)
    status = {name: (part["status"], part["errors"]) for name, part in report["parts"].items()}
    assert [name for name in chosen if status[name][0] == "failed"] == ["topk"], status
    assert done.exit_code == 2 and "mint.topk" not in str(status["hccl"])
    lines = {name: report["parts"][name]["lines"] for name in chosen}
    assert [("error" in line, "ms" in line) for line in lines["topk"]] == [(True, False), (False, True)]
    assert [line["first"] for line in lines["hccl"]] == [2.0] * 3
    for name, lengths in (("annotate", [256, 128, 64]), ("train", [256])):
        assert [line["row_length"] for line in lines[name]] == lengths
        assert all(np.isclose(x["tokens"] / x["seconds"], x["tokens_per_second"]) for x in lines[name])
    assert lines["train"][0]["tokens"] == 2 * 256  # a step of two micro-batches
    decoded = [line for line in lines["rollout"] if "sequences" in line]
    assert [(x["sequences"], x["tokens"]) for x in decoded] == [(1, 8), (4, 32), (16, 128)]
    reload = lines["rollout"][-1]
    assert reload["name"] == "reload of weights" and "error" not in reload and "unmoved" not in str(reload)
    plan = CliRunner().invoke(
        app, ["plan", str(file), "--calibrate", str(out), "--prompts", "100", "--prompt-tokens", "20"]
    )
    assert plan.exit_code == 0 and "by measured rates" in plan.output and "of it start-up" in plan.output
