"""The rule table, in both directions and against index arithmetic."""

import numpy as np
import pytest

from npd_ascend.models.mapping import rules
from npd_ascend.models.spec import ModelSpec
from tests.models.conftest import FAMILIES


def spec_of(config):
    return ModelSpec.from_config(config, {}, "test")


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_undoes_merge_and_each_name_occurs_once(configs, family, interleaved):
    spec = spec_of(configs[family])
    table = rules(spec, interleaved=interleaved)
    names = [n for rule in table for n in rule.hf]
    assert len(set(names)) == len(names) and len({r.param for r in table}) == len(table)
    rng = np.random.default_rng(0)
    total = 0
    for rule in table:
        parts = [rng.standard_normal(s).astype(np.float32) for s in rule.shapes]
        merged = rule.merge(parts)
        total += merged.size
        for a, b in zip(parts, rule.split(merged), strict=True):
            assert a.shape == b.shape and np.array_equal(a, b)
    assert total == spec.parameters


def test_rows_of_qkv_and_gate_up(configs):
    spec = spec_of(configs["llama"])  # 6 heads in 2 groups of 16
    q, k, v = (np.arange(n * 48).reshape(n, 48) + shift for n, shift in ((96, 0), (32, 10_000), (32, 20_000)))
    by_name = {r.param: r for r in rules(spec, interleaved=True)}
    merged = by_name["model.decoder.layers.1.self_attention.linear_qkv.weight"].merge([q, k, v])
    per_group = (3 + 2) * 16
    for row in range(len(merged)):
        group, within = divmod(row, per_group)
        if within < 48:
            expected = q[group * 48 + within]
        elif within < 64:
            expected = k[group * 16 + within - 48]
        else:
            expected = v[group * 16 + within - 64]
        assert np.array_equal(merged[row], expected)
    gate, up = np.zeros((80, 48)), np.ones((80, 48))
    name = "model.decoder.layers.0.mlp.linear_fc1.weight"
    assert by_name[name].merge([gate, up])[:, 0].tolist() == [0, 1] * 80
    halves = {r.param: r for r in rules(spec)}[name].merge([gate, up])
    assert halves[:, 0].tolist() == [0] * 80 + [1] * 80
