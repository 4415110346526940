"""Model folders that hold the published shapes and no weights, and small configurations over them."""

import json
from pathlib import Path

import pytest

from npd_ascend.config.load import parse_config

PANGU = {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True,
         "vocab_size": 153376, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "hidden_act": "silu",
         "bos_token_id": 1, "eos_token_id": 45892, "pad_token_id": 0}  # fmt: skip
SHAPES = {
    "pangu1b": {
        **PANGU,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 26,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "rope_theta": 4e6,
        "tie_word_embeddings": True,
    },
    "pangu7b": {
        **PANGU,
        "hidden_size": 4096,
        "intermediate_size": 12800,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 16e6,
    },
    "small": {
        **PANGU,
        "vocab_size": 1000,
        "eos_token_id": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}


@pytest.fixture
def shapes(tmp_path):
    """Folders by name, each with a config.json."""
    for name, shape in SHAPES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(shape))
    return {name: tmp_path / name for name in SHAPES}


@pytest.fixture
def config(tmp_path, shapes):
    """Factory: a configuration of the small shape over 100 prompts; arguments are sections."""
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "x" * 58}) + "\n" for _ in range(100)))

    def make(**sections):
        small = str(shapes["small"])
        tree = {
            "run": {"dir": str(tmp_path / "run")},
            "data": {"prompts": [str(tmp_path / "p.jsonl")]},
            "models": {"teacher": small, "student": small},
            "rollout": {"max_new_tokens": 100},
        }
        return parse_config({**tree, **sections}, "test")

    return make


@pytest.fixture
def paper(tmp_path, shapes):
    """Factory: the paper's large run, one pass (Table 19): openPangu 7B to 1B on 8 NPUs."""

    def make(**sections):
        tree = {
            "run": {"dir": str(tmp_path / "run")},
            "data": {"prompts": [str(tmp_path / "none.jsonl")]},
            "models": {"teacher": str(shapes["pangu7b"]), "student": str(shapes["pangu1b"])},
            "rollout": {"workers": 8, "memory_fraction": 0.9, "max_new_tokens": 8192},
            "train": {"data_parallel": 8},
            "sync": {"refreshes": 0},
        }
        return parse_config({**tree, **sections}, "test")

    return make


RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def npu_smi():
    """Recorded output by name."""
    return lambda name: (RECORDED / f"{name}.txt").read_text()
