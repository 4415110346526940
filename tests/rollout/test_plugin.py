"""The configuration of openPangu-Embedded without code from the checkpoint."""

from __future__ import annotations

import pickle
import subprocess
import sys
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


def test_config_reaches_the_processes_of_an_engine(tmp_path, make_checkpoint):
    """On NPUs the engine core is a spawned process, and its configuration goes there by pickle."""
    register()
    config = AutoConfig.from_pretrained(make_checkpoint(tmp_path / "m"))
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    code = (
        "import pickle, sys\n"
        "c = pickle.load(open(sys.argv[1], 'rb'))\n"
        "rope = getattr(c, 'rope_parameters', None) or vars(c)  # the former since transformers 5\n"
        "print(c.model_type, c.attention_bias, c.bias, rope['rope_theta'])"
    )
    said = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "config.pickle")], text=True)
    assert said.split() == ["PanguEmbedded", "True", "True", "16000000.0"]
