"""Row statistics and top-k against plain formulas in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.annotate.distribution import summarise, top_k


def naive(logits, targets):
    x = logits.astype(np.float64)
    logz = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
    logp = x - logz[:, None]
    return logz, logp, logp[np.arange(len(x)), targets], -(np.exp(logp) * logp).sum(1)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 700), st.data())
def test_top_k_is_exact(seed, rows, vocab, data):
    k = data.draw(st.integers(1, vocab))
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal((rows, vocab)), data.draw(st.integers(0, 6))).astype(np.float32)
    ids, best = top_k(values, k)
    assert np.array_equal(best, -np.sort(-values, axis=1)[:, :k])
    assert np.array_equal(np.take_along_axis(values, ids, 1), best)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("vocab", [2048, 153376, 4097])
def test_top_k_of_wide_rows(vocab):
    values = np.random.default_rng(0).standard_normal((3, vocab)).astype(np.float32)
    ids, best = top_k(values, 10)
    assert np.array_equal(ids, np.argsort(-values, axis=1)[:, :10])
    assert np.array_equal(best, -np.sort(-values, axis=1)[:, :10])


@pytest.mark.parametrize(
    ("rows", "vocab", "k", "scale"), [(700, 131, 5, 1), (5, 40, 40, 8), (3, 153376, 10, 4), (9, 64, 0, 30)]
)
def test_summary_equals_plain_formulas(rows, vocab, k, scale):
    rng = np.random.default_rng(rows)
    logits = (rng.standard_normal((rows, vocab)) * scale + 50).astype(np.float32)
    targets = rng.integers(0, vocab, rows)
    got = summarise(logits, targets, k)
    logz, logp, sampled, entropy = naive(logits, targets)
    np.testing.assert_allclose(got.logz, logz, atol=2e-5)
    np.testing.assert_allclose(got.sampled, sampled, atol=5e-5)
    np.testing.assert_allclose(got.entropy, entropy, atol=5e-5)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(got.logprobs, np.take_along_axis(logp, order, 1), atol=5e-5)
    if k == vocab:
        np.testing.assert_allclose(np.exp(got.logprobs.astype(np.float64)).sum(1), 1, atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours():
    rng = np.random.default_rng(5)
    logits, targets = rng.standard_normal((900, 333)).astype(np.float32), rng.integers(0, 333, 900)
    whole, part = summarise(logits, targets, 4), summarise(logits[701:705].copy(), targets[701:705], 4)
    for name in ("ids", "logprobs", "logz", "sampled", "entropy"):
        assert np.array_equal(getattr(whole[701:705], name), getattr(part, name))


def test_nan_is_not_hidden():
    logits = np.zeros((2, 9), np.float32)
    logits[1, 3] = np.nan
    logz = summarise(logits, np.zeros(2, int), 2).logz
    assert np.isfinite(logz[0]) and not np.isfinite(logz[1])
