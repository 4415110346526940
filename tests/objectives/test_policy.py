"""Policy-gradient terms against TRL's GRPO loss and naive forms in float64, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import nn  # noqa: E402

from npd_ascend.config.schema import LossConfig  # noqa: E402
from npd_ascend.objectives import chunked  # noqa: E402
from npd_ascend.objectives.registry import TERMS, input_names, reported, summands  # noqa: E402

pytestmark = pytest.mark.mindspore


def clamp(x, low=-np.inf, high=np.inf):
    return np.clip(x, low, high)


def trl(logps, old, ref, advantages, *, kind, low=0.2, high=0.28, beta=0.0):
    """Per-token loss of TRL 1.16's ``GRPOTrainer._compute_loss`` (``grpo``, ``dapo``, ``dr_grpo``: the clipped ratio;
    ``cispo``), without its mean. ``held`` are the values that TRL detaches."""
    ratio = np.exp(logps - old)
    if kind == "cispo":
        loss = -clamp(ratio, high=high) * advantages * logps
    else:
        loss = -np.minimum(ratio * advantages, clamp(ratio, 1 - low, 1 + high) * advantages)
    if beta:
        loss = loss + beta * (np.exp(ref - logps) - (ref - logps) - 1)
    return loss


def trl_gradient(logps, old, ref, advantages, *, kind, low=0.2, high=0.28, beta=0.0, step=1e-6):
    """Of each token's loss towards its own log-prob: central differences; CISPO's weight is detached."""
    if kind == "cispo":
        gradient = -clamp(np.exp(logps - old), high=high) * advantages
        return gradient + beta * (1 - np.exp(ref - logps))
    options = {"kind": kind, "low": low, "high": high, "beta": beta}
    up, down = (trl(logps + s, old, ref, advantages, **options) for s in (step, -step))
    return (up - down) / (2 * step)


class Objective(nn.Cell):
    """Value, sums and gradient towards the label's log-probs, compiled."""

    def __init__(self, objective):
        super().__init__()
        self.both = ms.value_and_grad(objective, 0, has_aux=True)

    def construct(self, label, *inputs):
        return self.both(label, label, inputs)


_COMPILED = {}


class Rows:
    """Tokens of B answers of unequal lengths, and the weights by which each mean is a sum over tokens."""

    def __init__(self, seed=0, lengths=(5, 1, 9, 3), spread=0.5):
        rng = np.random.default_rng(seed)
        self.lengths, n = np.array(lengths), sum(lengths)
        self.logps = np.log(rng.uniform(0.05, 0.95, n))
        self.old = self.logps + rng.normal(0, spread, n)
        self.ref = self.logps + rng.normal(0, spread, n)
        self.advantages = np.repeat(rng.normal(0, 1, len(lengths)), lengths)

    def mean(self, kind, longest=16):
        """Weights of TRL's aggregations."""
        per = {
            "dapo": np.full(self.lengths.sum(), 1 / self.lengths.sum()),
            "grpo": np.repeat(1 / self.lengths / len(self.lengths), self.lengths),
            "dr_grpo": np.full(self.lengths.sum(), 1 / (len(self.lengths) * longest)),
        }
        return per["dapo" if kind == "cispo" else kind]

    def run(self, terms, weights):
        """Value and gradient towards the log-probs of the compiled objective, and what is reported."""
        ms.set_context(mode=ms.GRAPH_MODE)
        loss = LossConfig(terms=terms)
        found = summands(loss)
        names = input_names(found)
        at = {name: i for i, name in enumerate(names)}
        given = {
            "labels": np.zeros(len(self.logps), np.int32),
            "weights": np.repeat(weights[:, None], len(found), 1).astype(np.float32),
            "teacher_labels": self.ref.astype(np.float32),
            "rollout_logprobs": self.old.astype(np.float32),
            "advantages": self.advantages.astype(np.float32),
        }
        key = loss.model_dump_json()
        if key not in _COMPILED:
            _COMPILED[key] = Objective(chunked._objective(found, loss.topk_norm, at))
        objective = _COMPILED[key]
        label = ms.Tensor(self.logps.astype(np.float32))
        (value, sums), gradient = objective(label, *(ms.Tensor(given[name]) for name in names))
        values = reported(found, [float(value.asnumpy()), *sums.asnumpy().tolist()])
        return float(value.asnumpy()), gradient.asnumpy(), values


@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("low, high, beta", [(0.2, 0.28, 0.0), (0.2, 0.2, 0.04), (0.1, 0.6, 0.001)])
def test_trl(kind, low, high, beta):
    rows = Rows(seed=int(high * 100))
    weights = rows.mean(kind)
    options = {"kind": kind, "low": low, "high": high, "beta": beta}
    terms = {f"ppo_clip:{low}:{high}": 1.0} | ({"kl_sampled": beta} if beta else {})
    value, gradient, _ = rows.run(terms, weights)
    arrays = (rows.logps, rows.old, rows.ref, rows.advantages)
    assert abs(value - (trl(*arrays, **options) * weights).sum()) <= 1e-6
    assert np.abs(gradient - trl_gradient(*arrays, **options) * weights).max() <= 1e-6


@pytest.mark.parametrize("high", [1.5, 5.0])
def test_trl_cispo(high):
    rows = Rows(seed=3, spread=1.0)
    weights, arrays = rows.mean("cispo"), (rows.logps, rows.old, rows.ref, rows.advantages)
    value, gradient, _ = rows.run({f"cispo:1:{high - 1}": 1.0}, weights)
    assert abs(value - (trl(*arrays, kind="cispo", high=high) * weights).sum()) <= 1e-6
    assert np.abs(gradient - trl_gradient(*arrays, kind="cispo", high=high) * weights).max() <= 1e-6


def naive(name, logps, old, ref, a, constants):
    """(value, gradient, shares) of a token, written out."""
    r = np.exp(logps - old)
    if name == "reinforce":
        return -a * logps, -a, {}
    if name == "tis":
        (cap,) = constants or (2.0,)
        w = min(r, cap)
        return -w * a * logps, -w * a, {"clip_share": r > cap}
    if name == "icepop":
        low, high = constants or (0.5, 5.0)
        w = r if low <= r <= high else 0.0
        return -w * a * logps, -w * a, {"mask_share": not low <= r <= high}
    if name == "dppo":
        (bound,) = constants or (0.2,)
        moved = np.exp(logps) - np.exp(old)
        out = moved > bound if a > 0 else moved < -bound
        return (0.0, 0.0, {"mask_share": True}) if out else (-r * a, -r * a, {"mask_share": False})
    if name == "drift":
        return (logps - old) ** 2, 2 * (logps - old), {}
    if name == "kl_sampled":
        return np.exp(ref - logps) - (ref - logps) - 1, 1 - np.exp(ref - logps), {}
    raise KeyError(name)


FORMS = ("reinforce", "tis", "tis:1.1", "icepop", "icepop:0.9:1.1", "dppo", "dppo:0.05", "drift", "kl_sampled")


@pytest.mark.parametrize("text", FORMS)
def test_naive_forms(text):
    rows = Rows(seed=7, spread=0.8)
    name, *constants = text.split(":")
    tokens = zip(rows.logps, rows.old, rows.ref, rows.advantages, strict=True)
    values, gradients, shares = zip(*(naive(name, *t, tuple(map(float, constants))) for t in tokens), strict=True)
    weights = rows.mean("dapo")
    value, gradient, found = rows.run({text: 1.0}, weights)
    assert abs(value - np.dot(values, weights)) <= 2e-6
    np.testing.assert_allclose(gradient, np.array(gradients) * weights, atol=1e-6)
    for share in shares[0]:
        assert found[f"policy_{share}"] == pytest.approx(np.mean([s[share] for s in shares]), abs=1e-6)


def test_every_policy_term_is_compared():
    """A new file needs its naive form here."""
    of_policy = {t.name for t in TERMS.all().values() if t.needs_samples}
    assert of_policy == {"ppo_clip", "cispo", *(text.partition(":")[0] for text in FORMS)}


def test_what_is_watched():
    rows = Rows(seed=5)
    weights = rows.mean("dapo")
    _, alone, found = rows.run({"ppo_clip:0.2:0.28": 1.0}, weights)
    gap = rows.logps - rows.old
    r = np.exp(gap)
    clipped = np.where(rows.advantages > 0, r > 1.28, r < 0.8)
    assert found["policy_k3"] == pytest.approx((r - gap - 1).mean(), rel=1e-5)
    assert found["policy_gap"] == pytest.approx(np.abs(gap).mean(), rel=1e-5)
    assert found["policy_clip_share"] == pytest.approx(clipped.mean(), rel=1e-5) and 0 < clipped.mean() < 1
    assert (np.abs(alone) > 0).sum() == (~clipped).sum()  # and watching has no gradient
    _, both, _ = rows.run({"ppo_clip:0.2:0.28": 1.0, "drift": 0.0}, weights)
    np.testing.assert_array_equal(alone, both)


def test_a_ratio_beyond_all_bounds_is_finite():
    rows = Rows()
    rows.old[:] = -300.0
    for name in ("ppo_clip:0.2:0.28", "tis", "icepop", "dppo", "drift"):
        value, gradient, found = rows.run({name: 1.0}, rows.mean("dapo"))
        assert np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(list(found.values())).all()
