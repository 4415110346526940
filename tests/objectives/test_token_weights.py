"""Token weights of one sample."""

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.objectives.registry import TOKEN_WEIGHTS, Tokens
from npd_ascend.store.topk_codec import TopK


def tokens(entropy=None, logprobs=None, count=None):
    teacher = None
    if entropy is not None:
        n = len(entropy)
        flat = np.zeros(n, np.float32)
        teacher = TopK(
            np.zeros((n, 2), np.int32), np.zeros((n, 2), np.float32), flat, flat, np.asarray(entropy, np.float32)
        )
        count = n
    if logprobs is not None:
        count = len(logprobs)
    return Tokens(count, teacher, None if logprobs is None else np.asarray(logprobs, np.float32))


def weigh(name, sample):
    return TOKEN_WEIGHTS.find(name).weight(sample, None)


@pytest.mark.parametrize("name", TOKEN_WEIGHTS.names())
@pytest.mark.parametrize("count", [0, 1, 7])
def test_mean_one(name, count):
    rng = np.random.default_rng(0)
    given = tokens(rng.random(count), -rng.random(count) * 9)
    w = weigh(name, given)
    assert w.shape == (count,) and w.dtype == np.float32 and (w >= 0).all()
    assert count == 0 or w.mean() == pytest.approx(1)


def test_teacher_confidence():
    w = weigh("teacher_confidence", tokens([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(w, np.array([2, 1.5, 1]) / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(weigh("teacher_confidence", tokens([0.0, 0.0])), 1)


def test_surprisal_gate_falls_with_surprise():
    w = weigh("surprisal_gate", tokens(logprobs=[-0.1, -3.0, -9.0]))
    gate = 1 / (1 + np.exp(np.array([0.1, 3.0, 9.0]) - 3))
    np.testing.assert_allclose(w, gate / gate.mean(), rtol=1e-5)


def test_position_decay_halves():
    w = weigh("position_decay", tokens(count=2049))
    assert w[1024] / w[0] == pytest.approx(0.5) and w[2048] / w[0] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["teacher_confidence", "surprisal_gate"])
def test_what_is_missing_is_named(name):
    with pytest.raises(UserError, match="needs"):
        weigh(name, tokens(count=3))
