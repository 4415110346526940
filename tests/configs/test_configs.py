"""Every configuration for NPUs: loads, fits together, passes a dry run and an estimate at the models' full shapes."""

import json
import math
import re
import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from npd_ascend.config import load_config
from npd_ascend.models.mapping import rules
from npd_ascend.models.shapes import known_shape
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.plan import estimate, render
from npd_ascend.ops.plan.workload import Workload
from npd_ascend.pipeline.checks import check_config
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.store.layout import RunDir
from npd_ascend.sync.registry import policy_of

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"openPangu-Embedded-1B-SFT": 1.16e9, "openPangu-Embedded-7B": 8e9, "1.5B": 1.54e9, "7B": 7.6e9, "72B": 72.7e9}
FILES = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "target: ascend" in p.read_text())
NAMES = [p.stem for p in FILES]


def weightless(folder: Path) -> None:
    """A safetensors file that names every tensor and has the right size, all of it a hole."""
    layout, at = {}, 0
    for rule in rules(ModelSpec.from_folder(folder)):
        for name, shape in zip(rule.hf, rule.shapes, strict=True):
            size = 2 * math.prod(shape)
            layout[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


@pytest.fixture
def made(tmp_path):
    """File -> (configuration with its models and prompts replaced by folders that have the shapes, overrides)."""

    def make(path):
        c = load_config(path)
        sets = [f"run.dir={tmp_path / 'run'}", "device.target=cpu", "device.dtype=auto"]
        for role in ("teacher", "student"):
            name = getattr(c.models, role).name
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(known_shape(name)))
            weightless(folder)
            Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
            sets.append(f"models.{role}={folder}")
        prompts = tmp_path / "prompts.jsonl"
        row = {"problem": "x" * 500, "answer": "1"} if c.data.task else {c.data.prompt_field: "x" * 500}
        prompts.write_text("".join(json.dumps(row) + "\n" for _ in range(20)))
        return load_config(path, [*sets, f"data.prompts=[{prompts}]"])

    return make


def test_all_cases_of_the_paper_are_there():
    assert set(NAMES) >= {"openpangu_1b_from_7b", "openpangu_1b_from_7b_multipath", "openpangu_1b_from_7b_a3",
                          "openpangu_1b_from_7b_2nodes", "openpangu_1b_think_from_7b", "7b_from_72b",
                          "qwen2_5_math_1_5b_from_7b", "qwen2_5_coder_1_5b_from_7b"}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_header_has_source_and_command(path):
    header = path.read_text().split("run:\n")[0]
    assert all(line.startswith("#") and len(line) <= 120 for line in header.strip().splitlines())
    assert re.search(r"bash scripts/(run_npd|start_node)\.sh configs/" + path.name, header)
    assert "paper" in header.lower() or "arXiv" in header
    assert "need" in header.lower()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_a_dry_run_looks_at(path, made):
    """All but the hash of the student's weights, which reads them."""
    c = made(path)
    check_config(c)
    steps = StepBuilder(c, RunDir(c.run.dir), resolve_device(c.device), remember_hashes=False)
    assert not steps.step("prepare").complete and steps.span(0).start == 0
    assert "bounds the run" in render(estimate(c))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_lengths_and_batches_fit_together(path, made):
    c = made(path)
    student, teacher = ModelSpec.from_folder(c.models.student), ModelSpec.from_folder(c.models.teacher)
    longest = c.data.max_prompt_tokens + c.rollout.max_new_tokens
    assert longest <= min(student.max_positions, teacher.max_positions)
    assert longest <= c.annotate.row_length and longest <= c.pack.row_length
    assert c.pack.row_length <= student.max_positions
    assert c.pack.row_length >= 2048 and c.annotate.row_length >= 2048  # what Ascend's flash attention asks for
    assert c.train.global_batch * c.pack.row_length in (2**21, 2**19)
    assert c.device.dtype == "auto" and not c.rollout.keep_alive


@pytest.mark.parametrize(
    "path", [p for p in FILES if "openpangu" in p.stem and "grpo" not in p.stem], ids=lambda p: p.stem
)
def test_the_papers_settings(path):
    c = load_config(path)
    t = c.train
    assert (t.epochs, t.lr, t.min_lr, t.clip, t.loss.kd_weight) == (10, 1e-5, 1e-6, 1.0, 0.9)
    assert (c.annotate.k, c.select.lower, c.select.upper, c.select.filter) == (10, 0.0, 0.8, "delta_ifd")
    assert c.rollout.greedy and c.sync.refreshes == 1 and policy_of(c).span(0, 0.0).end == 5.0
    assert t.global_batch * c.pack.row_length == 2**21 and c.pack.row_length == 32768


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_plan(path, made):
    c = made(path)
    for role in ("teacher", "student"):
        name = getattr(c.models, role).name
        size = SIZES[name if name in SIZES else re.search(r"-(\d[\d.]*B)", name)[1]]
        assert ModelSpec.from_folder(getattr(c.models, role)).parameters == pytest.approx(size, rel=0.05)
    e = estimate(c, workload=Workload(50000, 300, 1000))
    assert all(s.hours() > 0 for s in e.stages)
    text = render(e)
    assert "does not fit: " not in text
