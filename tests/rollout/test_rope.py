"""Frequencies and attention factors of rotary embeddings against transformers' formulas and vLLM's tables."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from npd_ascend.rollout.engine import set_environment  # noqa: E402

set_environment("cpu")  # read by torch when it is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

from npd_ascend.models.hf_config import Reader  # noqa: E402
from npd_ascend.models.rope import SCALINGS, read_rope  # noqa: E402

POSITIONS = 131072
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "linear, nothing stretched": {"rope_type": "linear", "factor": 1.0},
    "llama3 of 3.1": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192},
    "llama3 of 3.2": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192},
    "yarn of Qwen": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn by itself": {"rope_type": "yarn", "factor": 1.5},
    "yarn with betas": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
                        "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False},
    "yarn with a factor": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
                           "attention_factor": 1.7},
    "yarn with mscale": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.2,
                         "mscale_all_dim": 0.7},
}  # fmt: skip


def parameters(name: str, theta: float) -> dict:
    return {"rope_type": name, **ROPES[name], "rope_theta": theta}


def read(name: str, theta: float):
    return read_rope(Reader({"rope_parameters": parameters(name, theta)}, "test"), POSITIONS)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("name", [n for n in ROPES if n != "default"])
def test_formulas_of_transformers(name, head_dim, theta):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=POSITIONS,
        rope_parameters=parameters(name, theta),
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config)
    ours = read(name, theta)
    np.testing.assert_allclose(ours.inverse_frequencies(head_dim), theirs.double().numpy(), rtol=2e-6)
    assert ours.attention_factor == pytest.approx(factor, rel=1e-12)
    plain = read("default", theta).inverse_frequencies(head_dim)
    assert (ours.inverse_frequencies(head_dim) != pytest.approx(plain)) == ("nothing" not in name)


@pytest.mark.parametrize("name", ROPES)
def test_tables_of_vllm(name):
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    given = {"original_max_position_embeddings": 512, **parameters(name, 1e4)}  # short tables
    if given["rope_type"] in ("default", "linear"):
        del given["original_max_position_embeddings"]
    elif "original_max_position_embeddings" in ROPES[name]:
        given["original_max_position_embeddings"] //= 16
    with set_current_vllm_config(VllmConfig()):
        table = get_rope(64, 512, rope_parameters=given, dtype=torch.float32).cos_sin_cache[:512].double().numpy()
    rope = read_rope(Reader({"rope_parameters": given}, "test"), 512)
    angles = np.arange(512)[:, None] * np.array(rope.inverse_frequencies(64))
    np.testing.assert_allclose(table[:, :32], np.cos(angles) * rope.attention_factor, atol=2e-4)
    np.testing.assert_allclose(table[:, 32:], np.sin(angles) * rope.attention_factor, atol=2e-4)


def test_all_types_are_compared():
    assert {parameters(n, 1e4)["rope_type"] for n in ROPES} == {"default", *SCALINGS}
