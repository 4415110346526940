"""Models of every depth compile and train: 80 layers is more than any supported checkpoint has."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.config.schema import TrainConfig  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.objectives.inputs import LossInputs  # noqa: E402
from npd_ascend.rows.collate import collate  # noqa: E402
from npd_ascend.train.reader import MicroBatch  # noqa: E402
from npd_ascend.train.step import Trainer  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
ROW, K, TOKENS = 16, 3, 8
BASE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "bias": True,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip


def trainer_of(layers, tied, model, rng):
    config = {**BASE, "model_type": model, "num_hidden_layers": layers, "tie_word_embeddings": tied}
    if model == "llama":
        del config["bias"]
    net = build(ModelSpec.from_config(config, {}, "config"), Device(), ROW)
    for p in net.trainable_params():
        value = rng.standard_normal(p.shape).astype(np.float32)
        p.set_data(ms.Tensor(1 + 0.1 * value if "norm" in p.name else value / np.sqrt(p.shape[-1])))
    return Trainer(net, TrainConfig(lr=1e-2, global_batch=1, clip=0.5), TOKENS)


@pytest.mark.parametrize("layers,tied,model", [(2, False, "qwen2"), (26, True, "PanguEmbedded"), (80, False, "llama")])
def test_a_step(layers, tied, model):
    """The first step of AdamW moves every value by the rate, against the sign of its gradient (and decays matrices)."""
    rng = np.random.default_rng(layers)
    trainer = trainer_of(layers, tied, model, rng)
    spec = trainer.net.spec
    text = rng.integers(0, spec.vocab_size, ROW - 2).astype(np.int32)
    rows = collate([[text]], ROW, spec.pad_token_id, 1)
    at = np.arange(4, 4 + TOKENS, dtype=np.int32)
    inputs = LossInputs(
        labels=text[at + 1],
        weights=np.ones((TOKENS, 2), np.float32),
        teacher_ids=rng.integers(0, spec.vocab_size, (TOKENS, K)).astype(np.int32),
        teacher_logprobs=np.full((TOKENS, K), np.log(0.9 / K), np.float32),
    )
    before = {p.name: p.asnumpy().copy() for p in trainer.optimizer.params}
    loss = trainer.accumulate(MicroBatch(rows, at, inputs, TOKENS, np.zeros(1, np.int64)), TOKENS) / TOKENS
    assert 0 < loss < 50
    gradients = {g.name.removeprefix("gradient."): g.asnumpy().copy() for g in trainer.optimizer.gradients}
    assert gradients.keys() == before.keys() and len(before) > 6 * layers
    assert all(np.abs(g).max() > 0 for name, g in gradients.items() if "linear_qkv.bias" not in name)
    norm, sums = trainer.update(1e-2, 1)
    square = sum(np.square(g, dtype=np.float64).sum() for g in gradients.values())
    assert norm == pytest.approx(np.sqrt(square), rel=1e-4) and sums["loss"] == pytest.approx(loss * TOKENS, rel=1e-6)
    scale = min(1.0, 0.5 / norm)
    for p in trainer.optimizer.params:
        g, w = gradients[p.name].astype(np.float64) * scale, before[p.name].astype(np.float64)
        want = w - 1e-2 * (g / (np.abs(g) + 1e-8) + (0.1 * w if p.ndim > 1 else 0))
        np.testing.assert_allclose(p.asnumpy(), want, rtol=0, atol=2e-5, err_msg=p.name)
    assert not any(g.asnumpy().any() for g in trainer.optimizer.gradients)
