"""Configuration: defaults of the paper, overrides, and one readable line for each mistake."""

import subprocess
import sys

import pytest
import yaml

from npd_ascend.config import dump_config, load_config
from npd_ascend.config.load import parse_config
from npd_ascend.errors import UserError
from npd_ascend.sync.registry import policy_of

MINIMAL = {"run": {"dir": "r"}, "models": {"teacher": "t", "student": "s"}, "data": {"prompts": ["p.jsonl"]}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def with_(**sections):
    tree = {k: dict(v) for k, v in MINIMAL.items()}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return tree


def test_defaults_are_the_papers(file):
    c = load_config(file)
    assert (c.train.loss.kd_weight, c.annotate.k, c.select.upper, c.select.lower) == (0.9, 10, "auto", "auto")
    assert (c.train.lr, c.train.min_lr, c.train.clip, c.train.epochs, c.pack.row_length) == (1e-5, 1e-6, 1.0, 10, 32768)
    assert c.train.global_batch * c.pack.row_length == 2 * 1024 * 1024
    assert policy_of(c).span(0, 0.0).end == 5.0 and c.sync.refreshes == c.rollout.paths == 1


def test_overrides(file):
    c = load_config(
        file, ["train.lr=2e-5", "data.prompts=[a.jsonl, b.parquet]", "sync.refreshes=2", "select.upper=null"]
    )
    assert c.train.lr == 2e-5 and len(c.data.prompts) == 2 and c.select.upper is None
    assert [round(policy_of(c).span(g, 0.0).end, 2) for g in range(3)] == [3.33, 6.67, 10]


def test_resolved_configuration_reads_back(file):
    c = load_config(file)
    assert parse_config(yaml.safe_load(dump_config(c)), "x") == c


@pytest.mark.parametrize(("tree", "message"), [
    (with_(train={"learning_rate": 1}), "unknown key train.learning_rate"),
    (with_(train={"epoch": 1}), "did you mean train.epochs?"),
    (with_(train={"loss": {"kd_wieght": 1}}), "did you mean train.loss.kd_weight?"),
    (with_(selct={}), "did you mean select?"),
    ({"run": {"dir": "r"}, "data": {"prompts": []}}, "models is missing"),
    (with_(train={"lr": -1}), "train.lr"),
    (with_(train={"lr": "fast"}), "train.lr"),
    (with_(annotate={"row_length": 100}), "multiple of 16"),
    (with_(rollout={"greedy": False}), "no path is left"),
    (with_(select={"lower": 1, "upper": 0}), "nothing could be kept"),
    (with_(select={"upper": 1, "upper_quantile": 0.9}), "keep one"),
    (with_(train={"global_batch": 6, "micro_batch": 4}), "not a multiple"),
    (with_(train={"lr": 1e-6, "min_lr": 1e-5}), "above lr"),
    (with_(train={"optimizer_sharding": True}), "use tensor_parallel"),
    (with_(train={"context_parallel": 3}), "pack.row_length 32768 is not a multiple of train.context_parallel 3"),
    (with_(train={"loss": {"ce_labels": "reference"}}), "rollout.source: reference"),
    (with_(train={"loss": {"ce_labels": "none", "kd_weight": 0}}), "nothing is left to train on"),
    (with_(evaluate={"prompts": ["e.jsonl"]}), "data.answer_field"),
    (with_(device={"max_device_memory": "59392MB"}), "max_device_memory"),
    (with_(device={"max_device_memory": "58"}), "GB"),
])  # fmt: skip
def test_mistakes(tree, message):
    with pytest.raises(UserError) as e:
        parse_config(tree, "c.yaml")
    assert message in str(e.value) and "\n" not in str(e.value) and "c.yaml" in str(e.value)


@pytest.mark.parametrize(("text", "message"), [
    ("a: [", "line"), ("- 1", "expected sections"), ("", "expected sections"),
    ("a: !!python/object:os.system x", "not valid YAML"),
])  # fmt: skip
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


@pytest.mark.parametrize("item", ["train.lr", "=1", "train..lr=1", "run.dir.x=1"])
def test_bad_override(file, item):
    with pytest.raises(UserError, match="--set"):
        load_config(file, [item])


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "latin")


def test_quantile_bounds_survive_writing_and_reading(file):
    c = load_config(file, ["select.upper_quantile=0.97", "select.lower=null"])
    assert parse_config(yaml.safe_load(dump_config(c)), "x") == c


def test_core_imports_without_engines():
    code = ("import sys, npd_ascend.cli, npd_ascend.pipeline.executor, npd_ascend.ops.doctor\n"
            "import npd_ascend.select.stage, npd_ascend.pack.stage, npd_ascend.evaluate.stage, npd_ascend.data.stage\n"
            "bad = {'mindspore', 'mindformers', 'vllm', 'torch'} & set(sys.modules)\n"
            "assert not bad, bad")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
