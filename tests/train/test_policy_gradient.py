"""A policy gradient of the user's own from the store to the gradient of the head, against numpy."""

import numpy as np
import pytest
from scipy.special import log_softmax

ms = pytest.importorskip("mindspore")

from npd_ascend.models.parallel.mesh import DeviceMesh  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.train import corpus  # noqa: E402
from npd_ascend.train.corpus import EpochPlan  # noqa: E402
from npd_ascend.train.stage import _reader  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]


def test_reward_and_teacher_in_one_loss_however_rows_are_packed(make_world, kept):
    """Gradients of a batch are the same for samples packed together, one row at a time, and for those in rows of their
    own, two at a time."""
    world = make_world(rewarded=True)
    world.pack(1, "alone", alone=True)
    world.pack(1, "packs")
    rows = {name: len(EpochPlan.read(Dataset.open(world.root / name, "packs"), 0)) for name in ("packs", "alone")}
    loss = {"terms": {"ppo_clip:0.2:0.28": 1.0, "forward_kl": 0.1, "drift": 0.01}, "mean": "sequence"}
    found = []
    for packs, micro in (("packs", 1), ("alone", 2)):
        batch = -(-rows[packs] // 2) * 2
        settings = {"global_batch": batch, "micro_batch": micro, "vocab_chunk_rows": 8 * micro}
        job = world.job(packs=packs, settings=settings, loss=loss, topk=world.root / "topk")
        spec, mesh = ModelSpec.from_folder(job.student), DeviceMesh(job.device)
        reader = _reader(job, spec, mesh, kept.align)
        assert reader.steps == [1]
        trainer = kept.trainer(job, spec, reader, mesh)
        load_hf(trainer.net, job.student)
        tokens = reader.tokens(0, 0)
        value = sum(trainer.accumulate(m, tokens) for m in reader.micro_batches(0, 0)) / tokens
        found.append((value, {g.name: g.asnumpy() for g in trainer.optimizer.gradients}))
        trainer.update(1e-3, 1)
    for value, gradients in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, found[0][1][name], rtol=1e-3, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name,chunk", [("reinforce", 8), ("clipped", 1000)])
def test_gradient_of_the_head(world, kept, policy_terms, monkeypatch, name, chunk):
    monkeypatch.setattr(corpus, "_advantages", lambda selection: world.advantages)  # a recipe with rewards has them
    key = f"policy_terms:{name}"
    job = world.job(settings={"vocab_chunk_rows": chunk}, loss={"terms": {key: 1.0}}, kd=0.9, topk=None)
    spec, mesh = ModelSpec.from_folder(job.student), DeviceMesh(job.device)
    reader = _reader(job, spec, mesh, kept.align)
    trainer = kept.trainer(job, spec, reader, mesh)
    load_hf(trainer.net, job.student)
    tokens = reader.tokens(0, 0)
    head = trainer.net.head_weight
    w = head.asnumpy().astype(np.float64)
    total, gradient = 0.0, np.zeros_like(w)
    for m in reader.micro_batches(0, 0):
        loss = trainer.accumulate(m, tokens)
        states = trainer.net(*trainer.net.inputs(m.rows)).astype(ms.float32).asnumpy()[m.positions[: m.tokens]]
        of = [s for s in m.samples for _ in world.responses[s]]
        labels = np.concatenate([world.responses[s] for s in m.samples])
        mu = np.concatenate([world.logprobs[s] for s in m.samples]).astype(np.float64)
        advantage, weight = world.advantages[of].astype(np.float64), world.weights[of].astype(np.float64)
        logq = log_softmax(states.astype(np.float64) @ w.T, -1)
        chosen = logq[np.arange(len(labels)), labels]
        if name == "reinforce":
            value, slope = -advantage * chosen, -advantage
        else:
            ratio = np.exp(chosen - mu)
            clipped = np.clip(ratio, 0.8, 1.2)
            value = -np.minimum(ratio * advantage, clipped * advantage)
            slope = np.where(ratio * advantage <= clipped * advantage, -ratio * advantage, 0)
        assert loss == pytest.approx((value * weight).sum(), rel=1e-4)
        dz = -np.exp(logq)
        dz[np.arange(len(labels)), labels] += 1
        gradient += (dz * (slope * weight)[:, None]).T @ states
        total += (value * weight).sum()
    found = next(g.asnumpy() for g in trainer.optimizer.gradients if g.name == f"gradient.{head.name}")
    np.testing.assert_allclose(found, gradient / tokens, rtol=1e-3, atol=1e-5)
    _, sums = trainer.update(1e-3, 1)
    assert sums["loss"] == pytest.approx(total, rel=1e-4) and sums[f"term_{name}"] == pytest.approx(total, rel=1e-4)
    assert sums["kd"] == 0 and sums["ce"] > 0
