"""Cutting parameters over ranks and putting them together again, and what a rank's network may look like."""

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.models.mapping import heads_of, rules, shard_of
from npd_ascend.models.parallel.shards import TPShards
from npd_ascend.models.spec import ModelSpec


@pytest.fixture(params=["pangu", "qwen3"])
def spec(configs, request):
    return ModelSpec.from_config({**configs[request.param], "vocab_size": 96}, {}, "config")


@pytest.mark.parametrize("interleaved", [False, True])
def test_ranks_hold_the_checkpoints_tensors_in_equal_parts(spec, interleaved):
    """Naive reference: heads, columns and rows of the checkpoint's own tensors, cut with numpy."""
    rng = np.random.default_rng(0)
    for rule in rules(spec, interleaved=interleaved):
        tensors = [rng.standard_normal(s).astype(np.float32) for s in rule.shapes]
        whole = rule.merge(tensors)
        parts = []
        for rank in range(2):
            tp_shards = TPShards(spec, interleaved=interleaved, rank=rank, size=2)
            parts.append(tp_shards.own(rule.param, whole))
            name = rule.hf[0]
            axis = (
                1
                if "o_proj.weight" in name or "down_proj" in name
                else None
                if "norm" in name or "o_proj" in name
                else 0
            )
            assert tp_shards.cuts(rule.param) == (axis is not None)
            cut = [t if axis is None else np.split(t, 2, axis)[rank] for t in tensors]
            local = {r.param: r for r in rules(shard_of(spec, 2), interleaved=interleaved)}[rule.param]
            for got, want in zip(local.split(parts[-1]), cut, strict=True):
                np.testing.assert_array_equal(got, want)
        for rank in range(2):
            tp_shards = TPShards(
                spec, interleaved=interleaved, rank=rank, size=2, gather=lambda x, p=parts: np.stack(p)
            )
            np.testing.assert_array_equal(tp_shards.whole(rule.param, parts[rank]), whole)


@pytest.mark.parametrize(("size", "words"), [(3, "2 key-value heads"), (5, "6 attention heads")])
def test_what_does_not_come_out_even(spec, size, words):
    with pytest.raises(UserError, match=words):
        shard_of(spec, size)


def test_heads_of_context_parallel_ranks(spec):
    own = heads_of(spec, 2)
    assert (own.num_heads, own.num_kv_heads, own.hidden_size) == (3, 1, spec.hidden_size)
    with pytest.raises(UserError, match="context_parallel 3 does not divide the 2 key-value heads .* divisor of 2"):
        heads_of(spec, 3)
    with pytest.raises(UserError, match="does not divide the 1 key-value heads"):
        heads_of(shard_of(spec, 2), 2)


def test_mindformers_accepts_what_a_rank_is_built_from(spec):
    """Both kinds of leaves; the widths of a rank are those of a smaller model with the same hidden size."""
    pytest.importorskip("mindspore")
    from npd_ascend.models.device_modules import DEVICE_MODULES
    from npd_ascend.models.network import _config

    for modules in DEVICE_MODULES.values():
        c = _config(shard_of(spec, 2), modules, 2048, "float32", "float32")
        assert (c.num_attention_heads, c.num_query_groups, c.kv_channels) == (3, 1, spec.head_dim)
        assert (c.ffn_hidden_size, c.hidden_size, c.tensor_model_parallel_size) == (40, 48, 1)
        if modules.flash:
            assert (c.input_layout, c.sparse_mode, c.use_eod_attn_mask_compression) == ("TND", 3, True)


def test_the_same_layout_is_one_of_mindformers(spec):
    """Its parallel configuration takes our layouts; semi-automatic parallelism itself does not run on a CPU."""
    pytest.importorskip("mindspore")
    from mindformers.modules.transformer import TransformerOpParallelConfig
    from mindformers.parallel_core.transformer_config import TransformerConfig

    for dp, tp in ((8, 1), (4, 2), (2, 4)):
        p = TransformerOpParallelConfig(data_parallel=dp, model_parallel=tp, vocab_emb_dp=False)
        assert (p.data_parallel, p.model_parallel) == (dp, tp)
        c = TransformerConfig(
            num_layers=2,
            num_attention_heads=28,
            num_query_groups=4,
            hidden_size=3584,
            data_parallel_size=dp,
            tensor_model_parallel_size=tp,
        )
        assert c.tensor_model_parallel_size == tp
