"""The configuration of openPangu-Embedded without code from the checkpoint."""

from __future__ import annotations

from importlib.metadata import entry_points

from transformers import AutoConfig

from npd_ascend.rollout.plugin import register


def test_entry_point_is_installed():
    found = [e for e in entry_points(group="vllm.general_plugins") if e.value == "npd_ascend.rollout.plugin:register"]
    assert len(found) == 1 and found[0].load() is register


def test_config_is_read_without_remote_code(tmp_path, make_checkpoint):
    register()
    register()
    folder = make_checkpoint(tmp_path / "m")  # carries an auto_map to a file that is not there
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert config.model_type == "PanguEmbedded" and config.attention_bias and not config.mlp_bias
    assert config.head_dim == 32 and config.vocab_size == 128
    plain = make_checkpoint(tmp_path / "plain", bias=False)
    assert not AutoConfig.from_pretrained(plain).attention_bias
