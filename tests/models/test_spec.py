"""Architectures are read right, and what the network cannot do is refused in one line."""

import json
import subprocess
import sys

import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.rope import Llama3, Rope
from npd_ascend.models.shapes import known_shape
from npd_ascend.models.spec import ModelSpec

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(folder, config, generation=None):
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelSpec.from_folder(folder)


def test_families(tmp_path, configs):
    pangu = read(tmp_path, configs["pangu"])
    assert (pangu.qkv_bias, pangu.o_bias, pangu.tie_embeddings, pangu.head_dim) == (True, True, False, 8)
    qwen = read(tmp_path, configs["qwen2"])
    assert (qwen.qkv_bias, qwen.o_bias, qwen.tie_embeddings) == (True, False, True)
    llama = read(tmp_path, configs["llama"])
    assert (llama.qkv_bias, llama.o_bias, llama.head_dim) == (False, False, 16)
    biased = read(tmp_path, {**configs["llama"], "attention_bias": True})
    assert (biased.qkv_bias, biased.o_bias) == (True, True)


def test_special_ids(tmp_path, configs):
    spec = read(tmp_path, configs["pangu"], {"eos_token_id": [5, 6], "bos_token_id": None})
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (5, 6), 0)
    bare = {k: v for k, v in configs["llama"].items() if not k.endswith("token_id")}
    (tmp_path / "generation_config.json").unlink()
    spec = read(tmp_path, {**bare, "eos_token_id": 9, "pad_token_id": -1})
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (None, (9,), 9)


def test_rope_base_of_both_config_generations(tmp_path, configs):
    assert read(tmp_path, {**configs["llama"], "rope_theta": 4e6}).rope.theta == 4e6
    new = {k: v for k, v in configs["llama"].items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 123.0}
    assert read(tmp_path, new).rope.theta == 123.0


def test_rope_scaling_of_both_config_generations(tmp_path, configs):
    """Under the old key, the new one, or both; the older name of the type; a type of nothing."""
    want = read(tmp_path, {**configs["llama"], "rope_scaling": LLAMA3}).rope
    assert want == Rope(1e4, Llama3(8.0, 1.0, 4.0, 64))
    named = {"type" if k == "rope_type" else k: v for k, v in LLAMA3.items()}
    bare = {k: v for k, v in configs["llama"].items() if k != "rope_theta"}
    for changes in (
        {"rope_theta": 1e4, "rope_scaling": named},
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
        {"rope_scaling": {**named, "rope_theta": 1e4}, "rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
    ):
        assert read(tmp_path, {**bare, **changes}).rope == want
    assert read(tmp_path, {**configs["llama"], "rope_scaling": {"type": "default"}}).rope == Rope(1e4)


def test_what_a_missing_key_means_in_each_family(tmp_path, configs):
    """As transformers' config classes have it."""
    bare = {
        k: v
        for k, v in configs["llama"].items()
        if k not in ("head_dim", "num_key_value_heads", "architectures", "max_position_embeddings")
    }
    bare |= {"num_attention_heads": 32, "hidden_size": 64, "sliding_window": None}
    found = {f: read(tmp_path, {**bare, "model_type": f}) for f in ("llama", "qwen2", "qwen3", "mistral")}
    assert {f: s.head_dim for f, s in found.items()} == {"llama": 2, "qwen2": 2, "qwen3": 128, "mistral": 2}
    assert {f: s.num_kv_heads for f, s in found.items()} == {"llama": 32, "qwen2": 32, "qwen3": 32, "mistral": 8}
    assert found["mistral"].max_positions == 131072 and found["llama"].max_positions == 2048


def test_attention_is_scaled_by_yarns_factor_twice(tmp_path, configs):
    scaling = {"type": "yarn", "factor": 4.0, "attention_factor": 1.5}
    assert read(tmp_path, {**configs["llama"], "rope_scaling": scaling}).softmax_scale == 1.5 * 1.5 / 4
    assert read(tmp_path, configs["llama"]).softmax_scale == 0.25


def test_parameters_of_the_released_shape(tmp_path):
    """The 1B: tied, with biases of all four projections of attention."""
    layer = 1536 * 1536 * 2 + 768 * 1536 * 2 + 3 * 1536 * 6144 + 1536 + 2 * 768 + 1536 + 2 * 1536
    tied = read(tmp_path, known_shape("openPangu-Embedded-1B"))
    assert tied.parameters == 153376 * 1536 + 26 * layer + 1536
    untied = read(tmp_path, {**known_shape("openPangu-Embedded-1B"), "tie_word_embeddings": False})
    assert untied.parameters - tied.parameters == 153376 * 1536


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"hidden_size": 50}, "not a multiple"),
        ({"num_key_value_heads": 4}, "not a multiple"),
        ({"head_dim": 7}, "odd"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            "rope_parameters: low_freq_factor is missing",
        ),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "high_freq_factor 4.0 is not above low_freq_factor 4.0"),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}},
            "original_max_position_embeddings is miss",
        ),
        ({"rope_scaling": LLAMA3 | {"beta_fast": 32}}, "'llama3' has no 'beta_fast'"),
        ({"rope_scaling": LLAMA3 | {"factor": 0.5}}, "factor is 0.5, expected at least 1"),
        ({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 9.0}}, "two different models"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "write 2.0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported.* linear, llama3, yarn"),
        ({"rope_scaling": {"type": ["yarn"]}}, "not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 127}}, "does not reach"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 0}}, "attention_factor is 0"),
        ({"rope_theta": 1.0}, "above 1"),
        ({"model_type": "mistral", "architectures": None}, "sliding_window is 4096"),
        ({"model_type": "mistral", "architectures": None, "sliding_window": 64}, "sliding_window is 64"),
        ({"model_type": "qwen3", "architectures": None, "use_sliding_window": True}, "sliding"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "gemma3_text"}, "Gemma"),
        ({"model_type": "qwen2_5_vl", "text_config": {}}, "more than a language model"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "kind of layer"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "two different models"),
        ({"rope_parameters": [1]}, "rope_parameters is"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": 3}, "rope_scaling is 3"),
        ({"eos_token_id": 97}, "eos_token_id is 97"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
    ],
)
def test_refusals(tmp_path, configs, change, words):
    with pytest.raises(UserError, match=words) as e:
        read(tmp_path, {**configs["llama"], **change})
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        ModelSpec.from_folder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        ModelSpec.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object"):
        ModelSpec.from_folder(tmp_path)


def test_reading_a_spec_needs_no_engine():
    code = (
        "import sys; from npd_ascend.models.spec import ModelSpec; "
        "sys.exit(len({'mindspore', 'mindformers', 'torch', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
