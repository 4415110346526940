"""New checkpoints: reproducible, sharded as asked, with the statistics asked for."""

import json

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.initial import initial_checkpoint


def values(folder):
    return {n: e.read() for n, e in tensorfile.entries(folder).items()}


def test_seed_decides_and_shards_do_not(tmp_path, configs):
    initial_checkpoint(tmp_path / "a", configs["pangu"], seed=3)
    initial_checkpoint(tmp_path / "b", configs["pangu"], seed=3, shard_bytes=50_000)
    initial_checkpoint(tmp_path / "c", configs["pangu"], seed=4)
    a, b, c = (values(tmp_path / x) for x in "abc")
    assert set(a) == set(b) and all(np.array_equal(a[n], b[n]) for n in a)
    assert not np.array_equal(a["lm_head.weight"], c["lm_head.weight"])
    files = list((tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2 and all(f.stat().st_size < 60_000 for f in files)
    index = json.loads((tmp_path / "b" / tensorfile.INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in b.values())


def test_statistics(tmp_path, configs):
    spec = initial_checkpoint(tmp_path / "a", configs["qwen2"], std=0.05)
    found = values(tmp_path / "a")
    assert sum(x.size for x in found.values()) == spec.parameters
    assert found["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.05, rel=0.05)
    assert (found["model.norm.weight"] == 1).all() and (found["model.layers.0.self_attn.q_proj.bias"] == 0).all()


def test_class_name_is_added(tmp_path, configs):
    bare = {k: v for k, v in configs["llama"].items() if k != "architectures"}
    initial_checkpoint(tmp_path / "a", bare)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_bad_config_leaves_nothing(tmp_path, configs):
    with pytest.raises(UserError, match="hidden_size"):
        initial_checkpoint(tmp_path / "a", {**configs["llama"], "hidden_size": 50})
    assert not list(tmp_path.iterdir())
