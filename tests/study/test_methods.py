"""Each method's samples, weights and parameters against what its paper says, written out naively."""

import numpy as np
import pytest

from npd_ascend.config.schema import TrainConfig
from npd_ascend.config.study import LiveConfig
from npd_ascend.study.method import METHODS, Sample, Scored, changes, live_method
from npd_ascend.study.methods.distillm2 import skew
from npd_ascend.study.methods.minillm import long_returns, whitened


class Source:
    """Answers are the prompt's number, so that a test sees where a sample came from."""

    def __init__(self, n=12, seed=0):
        self.rng, self.n = np.random.default_rng(seed), n
        self.epoch, self.progress, self.loss = 0, 0.0, 1.0
        self.asked = []

    def _sample(self, i, origin):
        logprobs = -np.linspace(0.1, 1.0, 3 + i % 3).astype(np.float32) if origin == "student" else None
        return Sample(i, np.array([1, 2], np.int32), np.full(3 + i % 3, i, np.int32), origin, logprobs)

    def student(self, prompts):
        self.asked.append(list(prompts))
        return [self._sample(i, "student") for i in prompts]

    def reference(self, prompts):
        return [self._sample(i, "reference") for i in prompts]

    def teacher(self, prompts):
        return [self._sample(i, "teacher") for i in prompts]

    def everything(self):
        return range(self.n)

    def held_out_loss(self):
        return self.loss


def make(name, **live):
    kind = live_method(name)
    loss = {k.removeprefix("train.loss."): v for k, v in kind.changes.items() if k.startswith("train.loss.")}
    return kind(LiveConfig(**live), TrainConfig(loss=loss))


def test_all_methods_are_there():
    assert METHODS.names() == [
        "distillm",
        "distillm2",
        "gkd",
        "grpo",
        "minillm",
        "npd",
        "off_policy",
        "on_policy",
        "seqkd",
        "sft",
        "supkd",
    ]
    assert live_method("npd") is None and changes("npd") == {}


def test_on_policy_takes_fresh_answers_always():
    source, method = Source(), make("on_policy")
    for step in range(3):
        assert [s.origin for s in method.samples([step, 5], source)] == ["student"] * 2
    assert source.asked == [[0, 5], [1, 5], [2, 5]]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gkd_draws_each_step(share):
    source, method = Source(seed=3), make("gkd", student_fraction=share)
    draws = np.random.default_rng(3)
    for _ in range(50):
        want = "student" if draws.random() < share else "reference"
        assert {s.origin for s in method.samples([1, 2, 3], source)} == {want}


def test_distillm_learns_when_to_use_the_student():
    source = Source(seed=1)
    method = make("distillm", phi_step=0.5, replay_capacity=4)
    assert {s.origin for s in method.samples([1, 2], source)} == {"reference"} and method.phi == 0
    for epoch, (loss, phi) in enumerate([(1.05, 0.0), (1.2, 0.5), (1.25, 0.5), (1.4, 1.0)], start=1):
        source.epoch, source.loss = epoch, loss
        method.samples([1, 2], source)
        assert method.phi == phi
    source.progress, before = 0.0, len(source.asked)
    method.samples([3, 4], source)
    assert len(source.asked) == before + 1 and len(method.buffer) <= 4
    source.progress = 1.0  # at the end all comes from the buffer
    got = method.samples([7, 8], source)
    assert {s.origin for s in got} == {"student"} and not {s.index for s in got} & {7, 8}


def test_distillm2_pairs():
    source, method = Source(), make("distillm2")
    first = method.samples([2, 7], source)
    assert [(s.index, s.origin) for s in first] == [(2, "teacher"), (7, "teacher"), (2, "student"), (7, "student")]
    method.samples([3, 4], source)
    assert source.asked == [list(range(12))]  # all prompts at once, and once an epoch
    source.epoch = 1
    method.samples([3, 4], source)
    assert len(source.asked) == 2
    scored = [Scored(np.log([0.5] * len(s.response)), np.log([0.2] * len(s.response))) for s in first]
    weights = method.weigh(first, scored)
    tokens = sum(len(w) for w in weights)
    # Divided by all tokens, as the step does, each divergence becomes half of the mean over its own kind.
    for kind, column in (("teacher", 1), ("student", 2)):
        own = [w for w, s in zip(weights, first, strict=True) if s.origin == kind]
        assert sum(w[:, column].sum() for w in own) / tokens == pytest.approx(0.5)
        assert not any(w[:, 3 - column].any() or w[:, 0].any() for w in own)


def test_distillm2_skew():
    """α = clip(1 − (1 − α0) m / d, 0.01, α0): the base where a sample is as far off as the first ones were."""
    assert skew(0.1, 0.3, 0.3) == pytest.approx(0.1, abs=1e-4)
    assert skew(0.1, 0.3, 0.27) == 0.01 and skew(0.1, 0.3, 3.0) == 0.1 and skew(0.1, 0.3, 1e-9) == 0.01
    assert skew(0.3, 0.3, 0.25) == pytest.approx(1 - 0.7 * 0.3 / 0.25001)
    source, method = Source(), make("distillm2")
    samples = method.samples([0, 3], source)
    p = [0.6, 0.5, 0.1, 0.2]  # teacher's mean probabilities; the student's are 0.3 on all
    scored = [
        Scored(np.log(np.full(len(s.response), v)), np.log(np.full(len(s.response), 0.3)))
        for s, v in zip(samples, p, strict=True)
    ]
    got = [a[0] for a in method.parameters(samples, scored)]
    for i, (mean, gap) in enumerate([(0.25, 0.3), (0.25, 0.2), (0.15, 0.2), (0.15, 0.1)]):
        assert got[i] == pytest.approx(skew(0.1, mean, gap), rel=1e-5)


def test_minillm_returns():
    """R_{t+1} of eq. (5) with a discount, over the tokens left; naive double loop."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        r = rng.standard_normal(n)
        want = [sum(0.9 ** (u - t - 1) * r[u] for u in range(t + 1, n)) / max(1, n - 1 - t) for t in range(n)]
        np.testing.assert_allclose(long_returns(r, 0.9), want, atol=1e-12)
    flat = np.concatenate(whitened([rng.random(4), rng.random(3) + 5]))
    assert flat.mean() == pytest.approx(0) and flat.std() == pytest.approx(1)


def test_minillm_weights():
    source, method = Source(), make("minillm", gamma=0.0)
    samples = method.samples([0, 1], source)
    assert [s.origin for s in samples] == ["student", "student", "reference", "reference"]
    scored = [Scored(-np.arange(len(s.response), dtype=np.float32), None) for s in samples]
    weights = method.weigh(samples, scored)
    own = np.concatenate(weights[:2])
    tokens = sum(map(len, weights))
    # γ = 0: the advantage of a token is the next one's reward over the tokens left, whitened; 0 for the last.
    raw = [
        np.append((scored[i].teacher - samples[i].logprobs)[1:] * 0.5 / np.arange(len(w) - 1, 0, -1), 0)
        for i, w in enumerate(weights[:2])
    ]
    raw = np.concatenate(raw)
    np.testing.assert_allclose(own[:, 0] * len(own) / tokens, (raw - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-5)
    assert own[:, 1].sum() / tokens == pytest.approx(1)
    rest = np.concatenate(weights[2:])
    assert rest[:, 0].sum() / tokens == pytest.approx(1) and not rest[:, 1].any()
