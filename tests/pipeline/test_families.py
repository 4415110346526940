"""Whole runs of other families than openPangu, teacher and student of different ones: rolled out by vLLM, annotated and
trained by MindFormers, exported, reloaded for a second generation."""

import json
import shutil

import numpy as np
import pytest

from npd_ascend.data.tokenizer import TOKENIZER_FILES
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.models.spec import ModelSpec
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.mindspore, pytest.mark.timeout(600)]
pytest.importorskip("mindspore")

LLAMA3 = {"model_type": "llama", "rope_scaling": {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32}}  # fmt: skip
LINEAR = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MISTRAL = {"model_type": "mistral", "sliding_window": None}
QWEN3 = {
    "model_type": "qwen3",
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {**YARN, "rope_theta": 1e4},
}


@pytest.mark.parametrize(("teacher", "student"), [(MISTRAL, QWEN3), (QWEN3, LLAMA3)], ids=["qwen3", "llama3"])
def test_a_run(tiny, tmp_path, teacher, student):
    source = tiny.folder / "task" / "tokenizer"
    vocabulary = max(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"].values()) + 1
    like = json.loads((tiny.folder / "student" / "config.json").read_text())
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
             "max_position_embeddings": 256, "vocab_size": vocabulary, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
             **{k: v for k, v in like.items() if k.endswith("token_id")}}  # fmt: skip
    models = {}
    for seed, (name, config) in enumerate((("teacher", teacher), ("student", student))):
        models[name] = str(tmp_path / name)
        initial_checkpoint(
            tmp_path / name,
            {**shape, "num_hidden_layers": 2 + seed, **config},
            seed=seed,
            std=0.1,
            norm_std=0.1,
            bias_std=0.1,
        )
        for file in TOKENIZER_FILES:
            if (source / file).is_file():
                shutil.copy(source / file, tmp_path / name)
    config = tiny.config(
        tmp_path / "run",
        models=models,
        data={"limit": 6},
        annotate={"student_nll": "prefill"},
        rollout={"max_new_tokens": 12},
        train={"epochs": 1},
        sync={"refreshes": 1},
        evaluate={"prompts": [], "checker_data": None},
    )
    code, out = tiny.run(config)
    assert code == 0, out
    run = RunDir(tmp_path / "run")
    for generation in (run.generation(0), run.generation(1)):  # the second of reloaded weights
        said = Dataset.open(generation.rollouts, "rollouts").read_all()["logprobs"].to_pylist()
        scored = Dataset.open(generation.student_scores, "scores").read_all()["nll"].to_numpy()
        np.testing.assert_allclose([-np.mean(x, dtype=np.float64) for x in said], scored, atol=1e-4)
    assert ModelSpec.from_folder(run.export) == ModelSpec.from_folder(tmp_path / "student")
