"""Whole runs of models whose logits are padded beyond the tokenizer, each to a width of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_shard import TopKReader
from tests.pipeline.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.mindspore, pytest.mark.timeout(600)]
pytest.importorskip("mindspore")


def checkpoint(tiny, folder, width, seed, loud_padding, vocabulary):
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "init_checkpoint.py"),
            "--preset",
            "mini-student",
            "--hidden-size",
            "64",
            "--intermediate-size",
            "64",
            "--num-hidden-layers",
            "2",
            "--num-attention-heads",
            "2",
            "--num-key-value-heads",
            "1",
            "--seed",
            str(seed),
            "--vocab-size",
            str(width),
            "--tokenizer",
            str(tiny.folder / "task" / "tokenizer"),
            "--out",
            str(folder),
        ],
        check=True,
        capture_output=True,
    )
    return loud_padding(folder, vocabulary)


@pytest.mark.parametrize(("teacher", "student"), [(32, 8), (0, 24)], ids=["teacher wider", "teacher narrower"])
def test_widths_that_differ(tiny, tmp_path, loud_padding, teacher, student):
    """Both padded, the padding louder than any token: vLLM, MindFormers, top-k and training are over the tokenizer's
    ids, and what vLLM says of an answer MindFormers says too."""
    ids = json.loads((tiny.folder / "task" / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    vocabulary = max(ids.values()) + 1
    models = {
        "teacher": str(checkpoint(tiny, tmp_path / "t", vocabulary + teacher, 1, loud_padding, vocabulary)),
        "student": str(checkpoint(tiny, tmp_path / "s", vocabulary + student, 2, loud_padding, vocabulary)),
    }
    config = tiny.config(
        tmp_path / "run",
        models=models,
        data={"limit": 6},
        annotate={"student_nll": "prefill"},
        rollout={"max_new_tokens": 12},
        train={"epochs": 1, "weight_decay": 0.0},
        sync={"refreshes": 0},
        evaluate={"prompts": [], "checker_data": None},
    )
    code, out = tiny.run(config)
    assert code == 0, out
    run = RunDir(tmp_path / "run")
    g = run.generation(0)
    rollouts = Dataset.open(g.rollouts, "rollouts").read_all()
    answers, ours = rollouts["response_ids"].to_pylist(), rollouts["logprobs"].to_pylist()
    assert max(map(max, answers)) < vocabulary
    theirs = Dataset.open(g.student_scores, "scores").read_all()["nll"].to_numpy()
    np.testing.assert_allclose([-np.mean(x, dtype=np.float64) for x in ours], theirs, atol=1e-4)
    topk = TopKReader(Dataset.open(g.topk, "topk"))
    assert topk.vocab_size == vocabulary
    assert max(int(topk.read(i).ids.max()) for i in range(len(topk))) < vocabulary
    start, end = (load_file(f / "model.safetensors")["lm_head.weight"] for f in (tmp_path / "s", run.export))
    assert np.array_equal(start[vocabulary:], end[vocabulary:]) and (start[:vocabulary] != end[:vocabulary]).any()
