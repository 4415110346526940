"""Lag against numpy, and which samples are probed."""

import numpy as np
import pytest

from npd_ascend.train.corpus import EpochPlan

ms = pytest.importorskip("mindspore")

from npd_ascend.config.schema import TrainConfig  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.parallel.mesh import DeviceMesh  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.train.corpus import Corpus  # noqa: E402
from npd_ascend.train.lag import LagProbe, probe_plan  # noqa: E402
from npd_ascend.train.reader import Reader  # noqa: E402

pytestmark = pytest.mark.mindspore
ROW = 48
SETTINGS = TrainConfig(global_batch=4, micro_batch=2, vocab_chunk_rows=16, loss={"kd_weight": 0.0})


def log_probs(net, world, sample, vocabulary=None):
    """Of one sample's response, on a row of its own, in float64 from the hidden states: [T, V]."""
    prompt, response = world.prompts[sample], world.responses[sample]
    n = len(prompt) + len(response)
    ids, position, segment = np.zeros((2, ROW), np.int32), np.zeros((2, ROW), np.int32), -np.ones((2, ROW), np.int32)
    ids[0, :n], position[0, :n], segment[0, :n] = np.concatenate([prompt, response]), np.arange(n), 0
    hidden = net(*(ms.Tensor(a) for a in (ids, position, segment))).asnumpy()[len(prompt) - 1 : n - 1]
    z = hidden.astype(np.float64) @ net.head_weight.asnumpy()[:vocabulary].T.astype(np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_measure(world):
    from npd_ascend.config.job import Device

    mesh = DeviceMesh(Device())
    corpus = Corpus(*(Dataset.open(world.root / k, k) for k in ("prompts", "rollouts", "selection")))
    plan = EpochPlan.read(Dataset.open(world.root / "packs", "packs"), 0)
    reader = Reader(corpus, [plan], None, SETTINGS, ROW, 0, 53)
    old, new = world.student("old", seed=1), world.student("new", seed=2)
    net = build(ModelSpec.from_folder(old), Device(), ROW)
    load_hf(net, old)
    probe = LagProbe(net, reader, 9, mesh)
    same = probe.measure()
    assert same.forward == 0.0 and same.reverse == 0.0
    samples = np.flatnonzero(world.keep)[:9]
    before = np.concatenate([log_probs(net, world, s) for s in samples])
    load_hf(net, new)
    after = np.concatenate([log_probs(net, world, s) for s in samples])
    lag = probe.measure()
    assert lag.forward == pytest.approx((np.exp(after) * (after - before)).sum(-1).mean(), rel=1e-4)
    assert lag.reverse == pytest.approx((np.exp(before) * (before - after)).sum(-1).mean(), rel=1e-4)
    assert lag.forward > 0.01
    load_hf(net, old)
    assert probe.measure() == same


def test_padding_does_not_count(world, loud_padding):
    """Logits wider than the vocabulary of 53, the padding's own head moving as well."""
    from npd_ascend.config.job import Device

    corpus = Corpus(*(Dataset.open(world.root / k, k) for k in ("prompts", "rollouts", "selection")))
    plan = EpochPlan.read(Dataset.open(world.root / "packs", "packs"), 0)
    reader = Reader(corpus, [plan], None, SETTINGS, ROW, 0, 53)
    old, new = (
        loud_padding(world.student(name, seed=seed, vocab_size=64), 53) for name, seed in (("old", 1), ("new", 2))
    )
    net = build(ModelSpec.from_folder(old).sharing(53, old), Device(), ROW)
    load_hf(net, old)
    probe = LagProbe(net, reader, 9, DeviceMesh(Device()))
    same = probe.measure()
    assert same.forward == 0.0 and same.reverse == 0.0
    samples = np.flatnonzero(world.keep)[:9]
    before = np.concatenate([log_probs(net, world, s, 53) for s in samples])
    load_hf(net, new)
    after = np.concatenate([log_probs(net, world, s, 53) for s in samples])
    lag = probe.measure()
    assert lag.forward == pytest.approx((np.exp(after) * (after - before)).sum(-1).mean(), rel=1e-4)
    assert lag.reverse == pytest.approx((np.exp(before) * (before - after)).sum(-1).mean(), rel=1e-4)


def test_probe_takes_the_first_samples_with_their_lengths(world):
    plan = EpochPlan.read(Dataset.open(world.root / "packs", "packs"), 1)
    probe = probe_plan(plan, 5, ROW)
    assert sorted(probe.samples) == np.flatnonzero(world.keep)[:5].tolist()
    for s, p, r in zip(probe.samples, probe.prompt_tokens, probe.response_tokens, strict=True):
        assert (p, r) == (len(world.prompts[s]), len(world.responses[s]))
    lengths = probe.prompt_tokens + probe.response_tokens
    assert all(lengths[a:b].sum() <= ROW for a, b in zip(probe.first[:-1], probe.first[1:], strict=True))
    assert len(probe_plan(plan, 10**6, ROW).samples) == world.keep.sum()
