"""``npd doctor CONFIG --compile`` on MindSpore's Ascend backend: two small configurations, one of them cut."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npd_ascend.config import dump_config
from npd_ascend.config.load import parse_config
from npd_ascend.ops.ascend import standins
from npd_ascend.ops.ascend.cann import Cann
from npd_ascend.ops.ascend.output import read_log

pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        platform.machine() != "x86_64" or any(shutil.which(t) is None for t in standins.TOOLS),
        reason="needs x86-64 with gcc and binutils",
    ),
]
SMALL = {
    "model_type": "PanguEmbedded",
    "architectures": ["PanguEmbeddedForCausalLM"],
    "bias": True,
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Stand-ins that both tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compiled(tmp_path, cache, monkeypatch):
    """Runs the command; (exit code, what it printed, its JSON by stage)."""
    monkeypatch.setenv("NPD_CACHE", str(cache))

    def run(student, **sections):
        for name, config in (("teacher", {**SMALL, "num_hidden_layers": 3}), ("student", {**SMALL, **student})):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
        tree = {
            "run": {"dir": str(tmp_path / "run")},
            "data": {"prompts": [str(tmp_path / "p.jsonl")]},
            "models": {"teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "student")},
            "annotate": {"row_length": 2048, "vocab_chunk_rows": 256},
            "pack": {"row_length": 2048},
        }
        path = tmp_path / "c.yaml"
        path.write_text(dump_config(parse_config({**tree, **sections}, "test")))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "npd_ascend.cli",
                "doctor",
                str(path),
                "--compile",
                "--json",
                str(tmp_path / "found.json"),
            ],
            capture_output=True,
            text=True,
        )
        assert (tmp_path / "found.json").exists(), done.stderr[-3000:]
        found = json.loads((tmp_path / "found.json").read_text())
        return done, {g["stage"]: g for g in found["graphs"]}

    return run


def kernels(graph, phase, kind):
    return graph["phases"][phase]["kernels"].get(kind, {})


def test_one_device(compiled):
    """Tied, rows recomputed, 2,048 loss rows in four chunks."""
    done, found = compiled(
        {"tie_word_embeddings": True}, train={"global_batch": 2, "recompute": True, "vocab_chunk_rows": 512}
    )
    assert done.returncode == 0, done.stdout
    assert "a dry run, which computes nothing" in done.stdout and "ERROR" not in done.stdout
    assert "0:0" in done.stderr and "micro-batch" in done.stderr  # progress
    assert list(found) == ["annotate teacher", "annotate student", "train"]
    train = found["train"]
    forward = train["phases"]["micro-batch"]["kernels"]
    # Forward twice, for it is computed again; backward once.
    assert forward["aclnn"]["FlashAttentionScore"] == 4 and forward["aclnn"]["FlashAttentionScoreGrad"] == 2
    assert forward["aclnn"]["RmsNorm"] == 9 and forward["aclnn"]["SwigluGrad"] == 2
    assert kernels(train, "lag", "aclnn")["FlashAttentionScore"] == 2
    assert "FlashAttentionScoreGrad" not in kernels(train, "lag", "aclnn")
    # One operator a parameter: table, last norm, ten of each layer.
    assert kernels(train, "step", "acl")["AdamApplyOneWithDecayAssign"] == 2 + 2 * 8
    for graph in found.values():
        assert not graph["extrapolated"] and graph["layers"] == graph["compiled_layers"][0]
        for phase in graph["phases"]:
            assert not kernels(graph, phase, "none") and not kernels(graph, phase, "aicpu")
            assert not graph["phases"][phase]["collectives"]
    teacher = found["annotate teacher"]
    assert kernels(teacher, "forward", "aclnn")["FlashAttentionScore"] == 3
    assert kernels(teacher, "head with top-k", "aclnn")["TopkExt"] == 1
    # What is left of legacy operators: sums that automatic differentiation makes, and AdamW.
    for graph in found.values():
        for phase in graph["phases"]:
            assert set(kernels(graph, phase, "acl")) <= {"AddN", "AdamApplyOneWithDecayAssign"}
    # The chunks of the loss, one after the other.
    assert forward["aclnn"]["ScatterAddExt"] == 4
    assert "head with top-k" not in found["annotate student"]["phases"]
    # Weights, two moments, summed and fresh gradients in float32 are planned at least.
    weights = 512 * 128 + 2 * (3 * 128 * 256 + 2 * 128 * 128 + 2 * 64 * 128 + 2 * 128 + 2 * 64 + 2 * 128) + 128
    assert train["planned_bytes"] > 16 * weights


def test_cut_over_eight(compiled):
    """Tensor, context and data parallelism of two each, the optimizer's state cut over four."""
    done, found = compiled(
        {"num_key_value_heads": 4},
        annotate={"row_length": 2048, "vocab_chunk_rows": 256, "tensor_parallel": 2, "workers": 4},
        train={
            "global_batch": 2,
            "data_parallel": 2,
            "tensor_parallel": 2,
            "context_parallel": 2,
            "optimizer_sharding": True,
            "vocab_chunk_rows": 1024,
        },
        device={"max_device_memory": "2GB"},
    )
    # Two gigabytes are the margin alone.
    assert done.returncode == 2 and "more than device.max_device_memory" in done.stdout
    assert "no kernel" not in done.stdout and "does not compile" not in done.stdout
    train = found["train"]
    assert train["size"] == 8 and found["annotate teacher"]["size"] == 2
    kinds = {}
    for c in train["phases"]["micro-batch"]["collectives"]:
        kinds[c["kind"], c["ranks"]] = kinds.get((c["kind"], c["ranks"]), 0) + c["count"]
    # Of each layer two exchanges forward and two back; positions of a row: 1,024 on each of the two.
    assert kinds["AllToAll", 2] == 8
    assert kinds["ReduceScatter", 4] >= 1 and kinds["AllReduce", 2] >= 8
    sizes = {c["bytes"] for c in train["phases"]["micro-batch"]["collectives"] if c["kind"] == "AllToAll"}
    # To each of two: 1,024 positions of two query heads with their key and value head, and of two heads of the outcome.
    assert sizes == {2 * 1024 * (2 + 1 + 1) * 16 * 2, 2 * 1024 * 2 * 16 * 2}
    step = {c["kind"] for c in train["phases"]["step"]["collectives"]}
    assert step == {"AllGather", "AllReduce"}


_LACKING = """
import os
import mindspore as ms
import numpy as np
from mindspore import nn, ops

class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.factor, self.product = ops.Cholesky(), ops.MatMul()

    def construct(self, x):
        return self.factor(self.product(x, x))

ms.set_context(mode=0, device_target="Ascend")
os.write(2, b"npd-phase: a\\n")
Net().compile(ms.Tensor(np.eye(4, dtype=np.float32)))
os._exit(0)
"""


def test_an_operator_that_ascend_lacks(tmp_path, cache, monkeypatch):
    """MindSpore moves it to the CPU without an error; it counts as one without a kernel."""
    monkeypatch.setenv("NPD_CACHE", str(cache))
    python = Path(sys.executable)
    script = tmp_path / "net.py"
    script.write_text(_LACKING)
    done = subprocess.run(
        [str(python), str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=Cann.find(python).environment(python, 0, 1),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = read_log(done.stderr.splitlines())["a"].kernels
    assert kernels == {"aclnn": {"MatMul": 1}, "none": {"Cholesky": 1}}


def test_setting_that_ascend_refuses(compiled):
    """It is told from a fault of the compiler or of ours."""
    done, found = compiled({}, annotate={"row_length": 512}, pack={"row_length": 512}, train={"global_batch": 2})
    assert done.returncode == 2 and done.stdout.count("needs at least 2048 tokens a row") == 3
    assert "does not compile" not in done.stdout and "report the line" not in done.stdout
    assert all(graph["failed"] for graph in found.values())
