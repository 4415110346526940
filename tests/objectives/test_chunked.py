"""Values and gradients of the chunked loss against float64 numpy and finite differences."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax

ms = pytest.importorskip("mindspore")

from mindspore import nn  # noqa: E402

from npd_ascend.config.schema import LossConfig  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.objectives import chunked  # noqa: E402
from npd_ascend.objectives.chunked import AddAt, ChunkedLoss  # noqa: E402
from npd_ascend.objectives.registry import find_divergences  # noqa: E402

pytestmark = pytest.mark.mindspore
NORMS = ("teacher", "raw", "both", "tail")
PARAMETER = {"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1}


class Step(nn.Cell):
    """Value and gradients in one graph, the loss scaled as training scales it."""

    def __init__(self, loss, chunk, scale=1.0, vocabulary=None):
        super().__init__()
        self.loss = ChunkedLoss(loss, chunk, vocabulary=vocabulary)
        self.scale = scale
        self.both = ms.value_and_grad(self.forward, (0, 1), has_aux=True)

    def forward(self, hidden, head, targets, teacher, weights, parameters):
        out = self.loss(hidden, head, targets, teacher, weights, parameters)
        return out[0] * self.scale, out[1], out[2]

    def construct(self, hidden, head, targets, teacher, weights, parameters):
        return self.both(hidden, head, targets, teacher, weights, parameters)


@functools.cache
def compiled(loss, chunk, scale, vocabulary):
    ms.set_context(mode=ms.GRAPH_MODE)
    return Step(loss, chunk, scale, vocabulary)


def run(case, loss, chunk=100, scale=1.0, vocabulary=None):
    teacher, targets = (case.teacher, case.targets) if loss.kd_weight else (case.teacher[:, :1], case.targets[:, :1])
    terms = len(find_divergences(loss)) if loss.kd_weight else 0
    columns = case.columns if case.columns is not None else np.tile(case.weights[:, None], (1, 1 + terms))
    parameters = case.parameters
    if parameters is None:
        parameters = np.tile(np.array([p for _, p in find_divergences(loss)], np.float32), (len(case.weights), 1))
    args = [ms.Tensor(np.ascontiguousarray(a)) for a in
            (case.hidden.astype(np.float32), case.head.astype(np.float32), targets, teacher, columns, parameters)]
    values, grads = compiled(loss, chunk, scale, vocabulary)(*args)
    return [float(v.asnumpy()) for v in values], [g.asnumpy() for g in grads]


def check(case, loss, name="forward_kl", parameter=0.0):
    values, grads = run(case, loss)
    np.testing.assert_allclose(values, case.naive(loss, name, parameter), rtol=2e-5, atol=2e-5)
    for mine, naive in zip(grads, case.naive_gradients(loss, name, parameter), strict=True):
        np.testing.assert_allclose(mine, naive, rtol=2e-4, atol=3e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_forward_kl(case, norm):
    check(case, LossConfig(topk_norm=norm))


@pytest.mark.parametrize("norm,name", [("both", "reverse_kl"), ("tail", "reverse_kl"), ("tail", "jsd"),
                                       ("teacher", "skew_kl"), ("tail", "skew_reverse_kl")])
def test_other_divergences(case, name, norm):
    check(case, LossConfig(topk_norm=norm, divergence=name), name, PARAMETER.get(name, 0.0))


def test_parameter(case):
    check(case, LossConfig(topk_norm="tail", divergence="jsd:0.1"), "jsd", 0.1)


def test_weights_and_parameters_of_their_own(case):
    """Two divergences, each with its weights and a parameter for every token, beside a signed weight of CE: what
    DistiLLM-2 and a policy gradient need."""
    rng = np.random.default_rng(4)
    n = len(case.weights)
    case.columns = np.stack([rng.standard_normal(n), rng.random(n), rng.random(n)], 1).astype(np.float32)
    case.columns[3] = 0
    case.parameters = rng.uniform(0.02, 0.9, (n, 2)).astype(np.float32)
    loss = LossConfig(kd_weight=0.4, divergence="skew_kl+skew_reverse_kl", topk_norm="tail")
    values, grads = run(case, loss, chunk=4)

    def naive():
        logq = log_softmax(case.hidden @ case.head.T, -1)
        ce = -np.take_along_axis(logq, case.labels[:, None].astype(np.int64), -1)[:, 0]
        p = np.exp(case.teacher.astype(np.float64))
        q = np.exp(np.take_along_axis(logq, case.ids.astype(np.int64), -1))
        p, q = case.support("tail", p, q)
        a, w = case.parameters.astype(np.float64), case.columns.astype(np.float64)
        skew = case.divergence("skew_kl", p, q, a[:, :1])
        reverse = case.divergence("skew_reverse_kl", p, q, a[:, 1:])
        return 0.6 * (ce * w[:, 0]).sum() + 0.4 * (skew * w[:, 1] + reverse * w[:, 2]).sum()

    assert values[0] == pytest.approx(naive(), rel=1e-5)
    for mine, array in zip(grads, (case.hidden, case.head), strict=True):
        for at in [(0, 0), (2, 3), (7, 5)]:
            keep = array[at]
            array[at] = keep + 1e-6
            high = naive()
            array[at] = keep - 1e-6
            low = naive()
            array[at] = keep
            assert mine[at] == pytest.approx((high - low) / 2e-6, rel=2e-4, abs=3e-5)


def test_only_ce(case):
    loss = LossConfig(kd_weight=0)
    values, grads = run(case, loss, chunk=3)
    want = case.naive(loss)
    assert values[:2] == pytest.approx(want[:2], rel=1e-5) and values[2] == 0
    np.testing.assert_allclose(grads[0], case.naive_gradients(loss)[0], rtol=1e-4, atol=1e-5)


def test_no_ce_labels(case):
    check(case, LossConfig(ce_labels="none"))


def test_chunked_is_plain(make_case):
    case = make_case(n=37, v=50, k=7)
    loss = LossConfig(topk_norm="tail")
    values, grads = run(case, loss, chunk=1000, scale=0.25)
    for chunk in (8, 36):
        v, g = run(case, loss, chunk, scale=0.25)
        np.testing.assert_allclose(v, values, rtol=1e-5)
        for a, b in zip(g, grads, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_whole_vocabulary_is_full_kl(make_case, norm):
    case = make_case(v=13, k=13)
    loss = LossConfig(topk_norm=norm, kd_weight=1.0)
    z = case.hidden @ case.head.T
    logq = z - np.log(np.exp(z).sum(-1, keepdims=True))
    full = ((np.exp(case.full) * (case.full - logq)).sum(-1) * case.weights).sum()
    assert run(case, loss)[0][0] == pytest.approx(full, rel=1e-5)
    other = run(case, LossConfig(topk_norm="teacher", kd_weight=1.0))[1]
    for a, b in zip(run(case, loss)[1], other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("norm", ["tail"])
def test_equal_models_have_no_loss(case, name, norm):
    z = case.hidden @ case.head.T
    logq = z - np.log(np.exp(z).sum(-1, keepdims=True))
    case.teacher = np.take_along_axis(logq, case.ids.astype(np.int64), -1).astype(np.float32)
    values, grads = run(case, LossConfig(topk_norm=norm, divergence=name, kd_weight=1.0))
    assert abs(values[0]) < 2e-5
    assert all(np.abs(g).max() < 2e-5 for g in grads)


def test_raw_is_scaled_teacher(case):
    """L_raw = M_T · L_teacher + M_T log M_T, token by token."""
    mass = np.exp(case.teacher.astype(np.float64)).sum(-1)
    for row in range(4):
        case.weights[:] = 0
        case.weights[row] = 1
        raw = run(case, LossConfig(topk_norm="raw", kd_weight=1.0))[0][0]
        teacher = run(case, LossConfig(topk_norm="teacher", kd_weight=1.0))[0][0]
        assert raw == pytest.approx(mass[row] * teacher + mass[row] * np.log(mass[row]), rel=2e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_counts(case, norm):
    case.weights[:] = 0
    case.teacher[:] = 0  # as in padding: ids repeated, "probabilities" summing to k
    case.ids[:] = 0
    values, grads = run(case, LossConfig(topk_norm=norm))
    assert values == [0, 0, 0] and all((g == 0).all() for g in grads)


@pytest.mark.parametrize("norm", NORMS)
def test_vanishing_probabilities_are_safe(case, norm):
    case.teacher[0, 2:] = -np.inf
    case.teacher[1, 1:] = -200
    case.teacher[2, 0], case.teacher[2, 1:] = 0, -np.inf
    values, grads = run(case, LossConfig(topk_norm=norm))
    assert np.isfinite(values).all() and all(np.isfinite(g).all() for g in grads)
    case.teacher[:] = np.maximum(case.teacher, -64)
    np.testing.assert_allclose(values, case.naive(LossConfig(topk_norm=norm)), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_confident_wrong_student_is_safe(make_case, norm):
    case = make_case(scale=60)
    values, grads = run(case, LossConfig(topk_norm=norm))
    assert np.isfinite(values).all() and all(np.isfinite(g).all() for g in grads)


def test_student_weighted_needs_a_normalised_student(case):
    with pytest.raises(UserError, match="topk_norm to tail or both"):
        ChunkedLoss(LossConfig(divergence="reverse_kl"), 4)


@pytest.mark.parametrize(("chunk", "name", "norm"), [(100, "forward_kl", "teacher"), (4, "skew_kl", "tail")])
@pytest.mark.parametrize("padding", [1, 7, 45])
def test_padding_has_no_probability_and_no_gradient(make_case, padding, chunk, name, norm):
    """A head wider than the vocabulary, with padding whose logits tower over all: the loss of the vocabulary."""
    case, loss = make_case(v=19), LossConfig(topk_norm=norm, divergence=name)
    parameter = PARAMETER.get(name, 0.0)
    want, (hidden, head) = case.naive(loss, name, parameter), case.naive_gradients(loss, name, parameter)
    wide = copy.copy(case)
    wide.head = np.concatenate([case.head, np.random.default_rng(1).standard_normal((padding, 6)) * 50])
    values, grads = run(wide, loss, chunk, vocabulary=19)
    np.testing.assert_allclose(values, want, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(grads[0], hidden, rtol=2e-4, atol=3e-5)
    np.testing.assert_allclose(grads[1][:19], head, rtol=2e-4, atol=3e-5)
    assert not grads[1][19:].any() and np.isfinite(grads[1]).all()
    assert abs(run(wide, loss, chunk)[0][0] - want[0]) > 1


def test_trailing_rows_that_do_not_count(case):
    """Chunks with no weight at the end are left out: the same loss, and zeros there."""
    few = copy.copy(case)
    few.weights = np.where(np.arange(len(case.weights)) < 5, case.weights, 0).astype(np.float32)
    loss = LossConfig()
    values, grads = run(few, loss, chunk=3)
    all_at_once, want = run(few, loss)
    np.testing.assert_allclose(values, all_at_once, rtol=1e-5)
    for mine, other in zip(grads, want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    assert not grads[0][6:].any()


def test_equal_columns_add_up():
    x, index = np.zeros((2, 4), np.float32), np.array([[1, 1, 3], [0, 2, 0]], np.int32)
    out = AddAt()(ms.Tensor(x), ms.Tensor(index), ms.Tensor(np.array([[1, 2, 4], [1, 2, 4]], np.float32)))
    assert out.asnumpy().tolist() == [[0, 3, 0, 4], [5, 0, 2, 0]]


def test_ascend_has_a_scatter_of_its_own(monkeypatch):
    """That of the CPU can only replace there, says its documentation."""
    calls = []
    monkeypatch.setattr(chunked.ms, "get_context", lambda key: {"device_target": "Ascend"}[key])
    monkeypatch.setattr(chunked, "mint", SimpleNamespace(scatter_add=lambda *args: calls.append(args)))
    AddAt().construct("x", "index", "values")
    assert calls == [("x", 1, "index", "values")]
