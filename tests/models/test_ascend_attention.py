"""Attention as it is put together for Ascend, with what only an NPU has replaced: MindFormers' own SelfAttention and
rotary embeddings, our norms of heads, frequencies and scale."""

from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("mindspore")

from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention  # noqa: E402
from mindspore import nn, ops  # noqa: E402

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.models.attention import OuterProduct  # noqa: E402
from npd_ascend.models.device_modules import DEVICE_MODULES, DeviceModules, GatherEmbedding, PositionsFirst, ScaledFlash  # noqa: E402
from npd_ascend.models.network import CausalLM, _config, build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.rows.collate import collate  # noqa: E402

pytestmark = pytest.mark.mindspore
ROW = 48


class PlainCore(nn.Cell):
    """Softmax attention in place of the flash kernel."""

    def __init__(self, config, layer_number):
        super().__init__()
        self.groups, self.rep = config.num_query_groups, config.num_attention_heads // config.num_query_groups
        self.dim, self.scale = config.kv_channels, config.softmax_scale

    def construct(self, query, key, value, attention_mask):
        s, b = query.shape[:2]
        k, v = (
            ops.repeat_interleave(x.reshape(s, b, self.groups, self.dim).transpose(1, 2, 0, 3), self.rep, 1)
            for x in (key, value)
        )
        scores = ops.matmul(query.transpose(1, 2, 0, 3), k.transpose(0, 1, 3, 2)) * self.scale + attention_mask
        return ops.matmul(ops.softmax(scores, -1), v).transpose(2, 0, 1, 3).reshape(s, b, -1)


class TheirSelfAttention(SelfAttention):
    """MindFormers' own, whose keys go to the core unrepeated as on Ascend, between the CPU's layers of rows."""

    def _repeat_kv(self, x, rep):
        return x

    def construct(
        self,
        hidden_states,
        attention_mask,
        key_value_states=None,
        rotary_pos_emb=None,
        prefix_keys_values=None,
        actual_seq_len=None,
        sharded_key=None,
        sharded_value=None,
    ):
        x = hidden_states[0]  # the rest is of what the norm made it
        states = x.reshape(-1, attention_mask.shape[0], x.shape[1])
        out, bias = super().construct(states, attention_mask, None, rotary_pos_emb, None, actual_seq_len)
        return out.reshape(x.shape), bias


@dataclass(frozen=True)
class Theirs(DeviceModules):
    def patch(self, model, group):
        model.embedding.word_embeddings.embedding_morph = GatherEmbedding()
        model.embedding.transpose = PositionsFirst()
        model.rotary_pos_emb.outer = model.rotary_pos_emb.outer_for_eod = OuterProduct()


@pytest.mark.parametrize("family", ["qwen3_tied", "llama3"])
def test_equals_the_network_of_the_cpu(checkpoint, family):
    cpu = DEVICE_MODULES["cpu"]
    folder = checkpoint(family)
    spec = ModelSpec.from_folder(folder)
    ours = build(spec, Device(), ROW)
    theirs = CausalLM(
        spec,
        Theirs(
            cpu.norm,
            cpu.layer_norm,
            TheirSelfAttention,
            PlainCore,
            cpu.mlp,
            interleaved=False,
            flash=False,
            config=cpu.config,
        ),
        ROW,
        "float32",
        "float32",
    ).set_train(False)
    rng = np.random.default_rng(0)
    batch = collate([[rng.integers(0, 97, n) for n in (17, 30)]], ROW, 0, 1, longest=ROW)
    found = []
    for net in (ours, theirs):
        load_hf(net, folder)
        found.append(net(*net.inputs(batch)).asnumpy()[:47].copy())
    assert found[0].std() > 0.3
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["pangu", "qwen3_tied"])
def test_the_flash_kernel_gets_the_scale(configs, family):
    """YaRN's factor of 1.3 is in it, heads of 8 and 32."""
    spec = ModelSpec.from_config(configs[family], {}, "config")
    core = ScaledFlash(_config(spec, DEVICE_MODULES["ascend"], 2048, "bfloat16", "bfloat16"), 1)
    assert core.flash_attention.scale_value == pytest.approx({"pangu": 8**-0.5, "qwen3_tied": 1.69 * 32**-0.5}[family])
