"""Values and gradients of the chunked loss against float64 numpy and finite differences."""

import copy

import numpy as np
import pytest
from scipy.special import log_softmax

ms = pytest.importorskip("mindspore")

from mindspore import nn  # noqa: E402

from npd_ascend.config.schema import LossConfig  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.models.parallel.collectives import ProcessGroup  # noqa: E402
from npd_ascend.objectives.chunked import ChunkedLoss  # noqa: E402
from npd_ascend.objectives.inputs import LossInputs  # noqa: E402
from npd_ascend.objectives.registry import TERMS, input_names, parameters, summands  # noqa: E402

pytestmark = pytest.mark.mindspore
NORMS = ("teacher", "raw", "both", "tail")
DIVERGENCES = ("reverse_kl", "jsd", "skew_kl", "skew_reverse_kl")
PARAMETER = {"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1}


class Step(nn.Cell):
    """Value and gradients in one graph, the loss scaled as training scales it."""

    def __init__(self, loss, chunk, scale=1.0, vocabulary=None, unrolled=False, whole=False):
        super().__init__()
        self.loss = ChunkedLoss(loss, chunk, vocabulary=vocabulary, whole_vocabulary=whole)
        self.loss.unrolled = unrolled
        self.scale = scale
        self.both = ms.value_and_grad(self.forward, (0, 1), has_aux=True)

    def forward(self, hidden, head, *inputs):
        out = self.loss(hidden, head, inputs)
        return out[0] * self.scale, out[1]

    def construct(self, hidden, head, *inputs):
        return self.both(hidden, head, *inputs)


_COMPILED = {}


def compiled(loss, *settings):
    key = (loss.model_dump_json(), *settings)
    if key not in _COMPILED:
        ms.set_context(mode=ms.GRAPH_MODE)
        _COMPILED[key] = Step(loss, *settings)
    return _COMPILED[key]


def run(case, loss, chunk=100, scale=1.0, vocabulary=None, unrolled=False, whole=False):
    """The loss and each of its terms, and the gradients towards hidden states and head."""
    step, terms = compiled(loss, chunk, scale, vocabulary, unrolled, whole), summands(loss)
    n = len(case.weights)
    inputs = LossInputs(
        labels=case.labels,
        teacher_ids=case.ids,
        teacher_logprobs=case.teacher,
        advantages=case.advantages,
        rollout_logprobs=case.rollout_logprobs,
        weights=case.columns if case.columns is not None else np.tile(case.weights[:, None], (1, len(terms))),
        parameters=case.parameters if case.parameters is not None else np.tile(parameters(terms), (n, 1)),
    )
    (total, sums), grads = step(
        ms.Tensor(case.hidden.astype(np.float32)), ms.Tensor(case.head.astype(np.float32)), *step.loss.tensors(inputs)
    )
    return [float(total.asnumpy()), *sums.asnumpy().tolist()], [g.asnumpy() for g in grads]


def check(case, loss, name="forward_kl", parameter=0.0):
    values, grads = run(case, loss)
    np.testing.assert_allclose(values, case.naive(loss, name, parameter), rtol=2e-5, atol=2e-5)
    for mine, naive in zip(grads, case.naive_gradients(loss, name, parameter), strict=True):
        np.testing.assert_allclose(mine, naive, rtol=2e-4, atol=3e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_forward_kl(case, norm):
    check(case, LossConfig(topk_norm=norm))


@pytest.mark.parametrize(
    "norm,name",
    [
        ("both", "reverse_kl"),
        ("tail", "reverse_kl"),
        ("tail", "jsd"),
        ("teacher", "skew_kl"),
        ("tail", "skew_reverse_kl"),
    ],
)
def test_other_divergences(case, name, norm):
    check(case, LossConfig(topk_norm=norm, divergence=name), name, PARAMETER.get(name, 0.0))


def test_every_divergence_is_compared_with_the_plain_loss():
    """A new file in ``terms`` needs its naive form in ``conftest.divergence``, and a row here."""
    assert {t.name for t in TERMS.all().values() if t.is_divergence} == {"forward_kl", *DIVERGENCES}


@pytest.mark.parametrize("chunk", [100, 4])
def test_weighted_sum_of_terms(case, chunk):
    """Any terms with any weights: the sum of the plain losses and gradients; each is reported without its weight."""
    scales = {"forward_kl": 0.3, "cross_entropy": 0.25, "jsd:0.2": -0.5, "reverse_kl": 0.0}
    values, grads = run(case, LossConfig(terms=scales, topk_norm="tail"), chunk)
    alone = {name: LossConfig(topk_norm="tail", kd_weight=1.0, divergence=name) for name in ("forward_kl", "jsd:0.2")}
    ce = LossConfig(kd_weight=0)
    parts = {
        "forward_kl": case.naive(alone["forward_kl"])[0],
        "cross_entropy": case.naive(ce)[0],
        "jsd:0.2": case.naive(alone["jsd:0.2"], "jsd", 0.2)[0],
    }
    assert values == pytest.approx(
        [
            sum(scales[name] * v for name, v in parts.items()),
            parts["cross_entropy"],
            parts["forward_kl"],
            parts["jsd:0.2"],
        ],
        rel=2e-5,
    )
    naive = [
        case.naive_gradients(ce),
        case.naive_gradients(alone["forward_kl"]),
        case.naive_gradients(alone["jsd:0.2"], "jsd", 0.2),
    ]
    for i, mine in enumerate(grads):
        want = 0.25 * naive[0][i] + 0.3 * naive[1][i] - 0.5 * naive[2][i]
        np.testing.assert_allclose(mine, want, rtol=2e-4, atol=3e-5)


@pytest.mark.parametrize("chunk", [100, 4])
@pytest.mark.parametrize("name", ["reinforce", "clipped"])
def test_policy_gradient(case, name, chunk, policy_terms):
    """A term of the user's own that reads advantages, and the rollouts' log-probs; beside a divergence."""
    key = f"policy_terms:{name}"
    values, grads = run(case, LossConfig(terms={key: 0.7, "forward_kl": 0.2, "cross_entropy": 0.0}), chunk)
    kd = LossConfig(kd_weight=1.0)
    w, advantages = case.weights.astype(np.float64), case.advantages.astype(np.float64)
    z = case.hidden @ case.head.T
    logq = log_softmax(z, -1)
    chosen = logq[np.arange(len(w)), case.labels]
    ratio = np.exp(chosen - case.rollout_logprobs)
    if name == "reinforce":
        policy, slope = -advantages * chosen, -advantages
    else:
        policy = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
        slope = np.where(ratio * advantages <= np.clip(ratio, 0.8, 1.2) * advantages, -advantages * ratio, 0)
        assert 0 < (slope == 0).sum() < len(w)  # some are clipped, some are not
    ce, kl = case.naive(LossConfig(kd_weight=0))[0], case.naive(kd)[0]
    assert values == pytest.approx([0.7 * (policy * w).sum() + 0.2 * kl, ce, (policy * w).sum(), kl], rel=5e-5)
    dz = -np.exp(logq)
    dz[np.arange(len(w)), case.labels] += 1
    dz *= (slope * w)[:, None]
    for mine, policy_part, kl_part in zip(
        grads, (dz @ case.head, dz.T @ case.hidden), case.naive_gradients(kd), strict=True
    ):
        np.testing.assert_allclose(mine, 0.7 * policy_part + 0.2 * kl_part, rtol=3e-4, atol=5e-5)


def test_parameter(case):
    check(case, LossConfig(topk_norm="tail", divergence="jsd:0.1"), "jsd", 0.1)


def test_weights_and_parameters_of_their_own(case):
    """Two divergences, each with its weights and a parameter for every token, beside a signed weight of CE: what
    DistiLLM-2 and a policy gradient need."""
    rng = np.random.default_rng(4)
    n = len(case.weights)
    case.columns = np.stack([rng.standard_normal(n), rng.random(n), rng.random(n)], 1).astype(np.float32)
    case.columns[3] = 0
    case.parameters = rng.uniform(0.02, 0.9, (n, 3)).astype(np.float32)
    loss = LossConfig(kd_weight=0.4, divergence="skew_kl+skew_reverse_kl", topk_norm="tail")
    values, grads = run(case, loss, chunk=4)

    def naive():
        logq = log_softmax(case.hidden @ case.head.T, -1)
        ce = -np.take_along_axis(logq, case.labels[:, None].astype(np.int64), -1)[:, 0]
        p = np.exp(case.teacher.astype(np.float64))
        q = np.exp(np.take_along_axis(logq, case.ids.astype(np.int64), -1))
        p, q = case.support("tail", p, q)
        a, w = case.parameters.astype(np.float64), case.columns.astype(np.float64)
        skew = case.divergence("skew_kl", p, q, a[:, 1:2])
        reverse = case.divergence("skew_reverse_kl", p, q, a[:, 2:])
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
    assert values == pytest.approx(want[:2], rel=1e-5)
    assert input_names(summands(loss)) == ("labels", "weights")  # nothing of the teacher goes into the graph
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


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize(
    ("name", "norm", "chunk", "unrolled"),
    [("forward_kl", "teacher", 100, False), ("jsd", "both", 4, False), ("reverse_kl", "tail", 4, True)],
)
def test_whole_vocabulary_needs_no_ids(make_case, padding, name, norm, chunk, unrolled):
    case, loss = make_case(n=13, v=17, k=17), LossConfig(topk_norm=norm, divergence=name)
    order = np.argsort(case.ids, -1)
    case.ids, case.teacher = np.sort(case.ids, -1), np.take_along_axis(case.teacher, order, -1)
    parameter = PARAMETER.get(name, 0.0)
    want, (hidden, head) = case.naive(loss, name, parameter), case.naive_gradients(loss, name, parameter)
    wide = copy.copy(case)
    wide.head = np.concatenate((case.head, 50 * np.ones((padding, case.head.shape[1]))))
    wide.ids = None
    values, grads = run(wide, loss, chunk, vocabulary=17, unrolled=unrolled, whole=True)
    np.testing.assert_allclose(values, want, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(grads[0], hidden, rtol=2e-4, atol=3e-5)
    np.testing.assert_allclose(grads[1][:17], head, rtol=2e-4, atol=3e-5)
    assert (grads[1][17:] == 0).all()


def test_whole_vocabulary_without_a_teacher_and_without_weight(make_case):
    case = make_case(v=9, k=9)
    alone = LossConfig(kd_weight=0)
    values, grads = run(case, alone, whole=True)
    assert values == pytest.approx(case.naive(alone)[:2], rel=1e-5)
    np.testing.assert_allclose(grads[0], case.naive_gradients(alone)[0], rtol=1e-4, atol=1e-5)
    case.weights[:], case.teacher[:], case.ids = 0, 0, None  # as in rows that fill a batch
    values, grads = run(case, LossConfig(divergence="jsd", topk_norm="both"), chunk=4, whole=True)
    assert values == [0, 0, 0] and all((g == 0).all() for g in grads)


def test_whole_vocabulary_of_a_cut_head_is_refused():
    with pytest.raises(ValueError, match="not cut"):
        ChunkedLoss(LossConfig(), 4, ProcessGroup("pair", 0, 2), whole_vocabulary=True)


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


@pytest.mark.parametrize("chunk", [3, 4])
def test_chunks_without_a_loop(case, chunk):
    """As Ascend has them: the loss and the gradients of the loop, the last chunk smaller or as large as the others."""
    loss = LossConfig()
    values, grads = run(case, loss, chunk, unrolled=True)
    want, wanted = run(case, loss, chunk)
    np.testing.assert_allclose(values, want, rtol=1e-6)
    for mine, other in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)
