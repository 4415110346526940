"""Two real networks compared token by token, against logits of one answer at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mindspore")

import mindspore as ms  # noqa: E402
from mindspore import Tensor  # noqa: E402

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.exposure.divergence import HiddenStates, PairScorer  # noqa: E402
from npd_ascend.models.initial import initial_checkpoint  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.rows.prefill import prefill_batches  # noqa: E402

pytestmark = pytest.mark.mindspore
CONFIG = {"model_type": "PanguEmbedded", "bias": True, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
          "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
          "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
          "pad_token_id": 0}  # fmt: skip


def network(folder, seed, vocab, row_length=48, vocabulary=None):
    spec = initial_checkpoint(folder, {**CONFIG, "vocab_size": vocab}, seed=seed, std=0.25, norm_std=0.1, bias_std=0.2)
    net = build(spec.sharing(vocabulary or vocab, folder), Device(), row_length)
    load_hf(net, folder)
    return net


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return network(folder / "s", 1, 40), network(folder / "t", 2, 44)


def plain_logprobs(net, prompt, answer, vocab):
    """[T, vocab] float64, the answer alone in a row."""
    ids = np.concatenate([prompt, answer[:-1]])
    rows = np.zeros((3, 2, net.row_length), np.int32)
    rows[2] = -1
    rows[0, 0, : len(ids)], rows[1, 0, : len(ids)], rows[2, 0, : len(ids)] = ids, np.arange(len(ids)), 0
    hidden = net(*(Tensor(r) for r in rows)).asnumpy().astype(np.float64)
    z = hidden[len(prompt) - 1 : len(ids)] @ net.head_weight.asnumpy()[:vocab].T.astype(np.float64)
    z -= z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("chunk", [7, 24, 500])  # several a pass, several passes a chunk, all in one
def test_against_plain_softmaxes(pair, chunk):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 40, rng.integers(1, 9)).astype(np.int32) for _ in range(13)]
    answers = [rng.integers(3, 40, n).astype(np.int32) for n in (5, 1, 0, 17, 30, 8, 8, 2, 12, 3, 40, 6, 9)]
    found = PairScorer(*pair, micro_batch=2, chunk_rows=chunk)(prompts, answers)
    assert [len(t.kl_st) for t in found] == [len(a) for a in answers]
    for prompt, answer, got in zip(prompts, answers, found, strict=True):
        if not len(answer):
            continue
        s, t = (plain_logprobs(net, prompt, answer, 40) for net in pair)
        at = np.arange(len(answer))
        for name, expected in (
            ("kl_st", (np.exp(s) * (s - t)).sum(1)),
            ("kl_ts", (np.exp(t) * (t - s)).sum(1)),
            ("student", s[at, answer]),
            ("teacher", t[at, answer]),
        ):
            assert np.allclose(getattr(got, name), expected, atol=2e-5), name


def test_padding_of_either_model_is_left_out(tmp_path, loud_padding):
    """Both logits are wider than the vocabulary of 33, by different padding, and it is loud."""
    nets = []
    for seed, vocab in ((1, 40), (2, 44)):
        net = network(tmp_path / str(vocab), seed, vocab, vocabulary=33)
        load_hf(net, loud_padding(tmp_path / str(vocab), 33))
        nets.append(net)
    prompt, answer = np.array([3, 4, 5]), np.array([6, 32, 1, 9, 2])
    got = PairScorer(*nets, micro_batch=2, chunk_rows=24)([prompt], [answer])[0]
    s, t = (plain_logprobs(net, prompt, answer, 33) for net in nets)
    at = np.arange(len(answer))
    for name, expected in (
        ("kl_st", (np.exp(s) * (s - t)).sum(1)),
        ("kl_ts", (np.exp(t) * (t - s)).sum(1)),
        ("student", s[at, answer]),
        ("teacher", t[at, answer]),
    ):
        assert np.allclose(getattr(got, name), expected, atol=2e-5), name


def test_a_model_does_not_differ_from_itself(pair):
    student = pair[0]
    found = PairScorer(student, student, micro_batch=2)([np.array([3, 4])], [np.array([5, 6, 7])])[0]
    assert not found.kl_st.any() and not found.kl_ts.any() and (found.student == found.teacher).all()


def test_new_weights_are_seen_and_training_mode_is_kept(pair, tmp_path):
    student = network(tmp_path / "x", 3, 40)
    compare = PairScorer(student, pair[0], micro_batch=2)
    student.set_train(True)
    prompts, answers = [np.array([3, 4])], [np.array([5, 6, 7])]
    assert compare(prompts, answers)[0].kl_st.min() > 1e-4
    ms.load_param_into_net(student, {p.name: p for p in pair[0].get_parameters()})
    assert np.abs(compare(prompts, answers)[0].kl_st).max() < 1e-6 and student.training


def test_a_teacher_is_asked_once_for_the_same_tokens(pair, tmp_path):
    student, teacher = network(tmp_path / "x", 3, 40), pair[1]
    compare, states = PairScorer(student, teacher, micro_batch=2), HiddenStates()
    prompts, answers = [np.array([3, 4]), np.array([5])], [np.array([5, 6, 7]), np.array([8, 9])]
    first = compare(prompts, answers, states)
    head = teacher.head_weight
    compare.teacher = SimpleNamespace(head_weight=head)  # a body that would fail
    ms.load_param_into_net(student, {p.name: p for p in pair[0].get_parameters()})
    again, plain = compare(prompts, answers, states), PairScorer(student, teacher, micro_batch=2)(prompts, answers)
    for a, b, c in zip(first, again, plain, strict=True):
        assert np.array_equal(b.kl_ts, c.kl_ts) and np.array_equal(b.teacher, a.teacher)
        assert not np.allclose(a.kl_ts, b.kl_ts)


def test_a_student_is_asked_once_for_its_own_answers(pair, tmp_path):
    student, teacher, start = *pair, network(tmp_path / "s", 3, 40)
    prompts, answers, own = [np.array([3, 4]), np.array([5])], [np.array([5, 6, 7]), np.array([8, 9])], HiddenStates()
    plain = PairScorer(student, start, micro_batch=2)(prompts, answers)
    PairScorer(student, teacher, micro_batch=2)(prompts, answers, of_student=own)
    again = PairScorer(student, start, micro_batch=2)
    again.student = SimpleNamespace(  # a body that would fail
        head_weight=student.head_weight, row_length=48, spec=student.spec, training=False, set_train=lambda _: None
    )
    for a, b in zip(again(prompts, answers, of_student=own), plain, strict=True):
        assert np.array_equal(a.kl_st, b.kl_st) and np.array_equal(a.student, b.student) and a.kl_st.min() > 1e-5


def test_what_was_not_asked_for_longest_goes_first():
    states, made = HiddenStates(most=3 * 4 * 8), []
    passes = [next(prefill_batches([np.array([i])], [np.array([1, 2, 3])], 8, 1, 0)) for i in range(4)]

    def ask(i):
        return states.get(passes[i], lambda: made.append(i) or np.full((2, 4), i, np.float32))  # 32 bytes each

    for i in (0, 1, 2, 0, 3, 0, 2, 1):
        assert (ask(i) == i).all()
    assert made == [0, 1, 2, 3, 1]


def test_different_row_lengths_are_refused(pair, tmp_path):
    with pytest.raises(UserError, match="rows of 48 and 32"):
        PairScorer(pair[0], network(tmp_path / "y", 1, 40, row_length=32))
