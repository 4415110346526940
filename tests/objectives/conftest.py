"""The loss written out naively, in float64 on whole rows of logits."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax


def divergence(name, p, q, parameter):
    """Per row, from probabilities on the support [N, K]; terms with zero weight are zero."""

    def kl(a, b):
        return np.where(a > 0, a * (np.log(np.maximum(a, 1e-300)) - np.log(np.maximum(b, 1e-300))), 0).sum(-1)

    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        m = parameter * p + (1 - parameter) * q
        return parameter * kl(p, m) + (1 - parameter) * kl(q, m)
    if name == "skew_kl":
        return kl(p, parameter * p + (1 - parameter) * q)
    if name == "skew_reverse_kl":
        return kl(q, (1 - parameter) * p + parameter * q)
    raise KeyError(name)


def support(norm, p, q):
    if norm == "raw":
        return p, q
    if norm == "teacher":
        return p / p.sum(-1, keepdims=True), q
    if norm == "both":
        return p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (np.concatenate([x, np.maximum(1 - x.sum(-1, keepdims=True), 0)], -1) for x in (p, q))


class Case:
    """Random rows; the teacher's k best of its own logits."""

    def __init__(self, n=11, h=6, v=19, k=4, seed=0, scale=1.0):
        rng = np.random.default_rng(seed)
        self.hidden = rng.standard_normal((n, h)) * scale
        self.head = rng.standard_normal((v, h)) * 0.7
        full = log_softmax(rng.standard_normal((n, v)) * 2.0, -1)
        ids = np.argsort(-full, -1)[:, :k]
        self.full = full
        self.ids = ids.astype(np.int32)
        self.teacher = np.take_along_axis(full, ids, -1).astype(np.float32)
        self.labels = rng.integers(0, v, n).astype(np.int32)
        self.weights = (rng.random(n) * 2).astype(np.float32)
        self.weights[3] = 0
        self.advantages = rng.standard_normal(n).astype(np.float32) * 3
        self.rollout_logprobs = np.log(rng.uniform(0.05, 0.9, n)).astype(np.float32)
        self.columns = self.parameters = None
        self.divergence, self.support = divergence, support

    def from_logits(self, z, loss, name, parameter):
        logq = log_softmax(z, -1)
        w = self.weights.astype(np.float64)
        ce = -(np.take_along_axis(logq, self.labels[:, None].astype(np.int64), -1)[:, 0] * w).sum()
        p = np.exp(self.teacher.astype(np.float64))
        q = np.exp(np.take_along_axis(logq, self.ids.astype(np.int64), -1))
        kd = (divergence(name, *support(loss.topk_norm, p, q), parameter) * w).sum()
        ce_weight = 0 if loss.ce_labels == "none" else 1 - loss.kd_weight
        return ce_weight * ce + loss.kd_weight * kd, ce, kd

    def naive(self, loss, name="forward_kl", parameter=0.0):
        return self.from_logits(self.hidden @ self.head.T, loss, name, parameter)

    def naive_gradients(self, loss, name="forward_kl", parameter=0.0, step=1e-6):
        """Central differences on every entry of hidden and head."""
        out = []
        for array in (self.hidden, self.head):
            grad = np.zeros_like(array)
            for i in np.ndindex(array.shape):
                keep = array[i]
                array[i] = keep + step
                high = self.naive(loss, name, parameter)[0]
                array[i] = keep - step
                low = self.naive(loss, name, parameter)[0]
                array[i] = keep
                grad[i] = (high - low) / (2 * step)
            out.append(grad)
        return out


@pytest.fixture
def case():
    return Case()


@pytest.fixture
def make_case():
    return Case


@pytest.fixture
def policy_terms(monkeypatch):
    """``policy_terms.py`` of this folder may be imported, as a user's own module."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
