"""Summaries against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from npd_ascend.exposure.measures import by_answer, clustered_mean, excess_accumulated_error, measure, summarise


class Along:
    """Per-token figures of one answer."""

    def __init__(self, kl_st, kl_ts, student, teacher):
        self.kl_st, self.kl_ts, self.student, self.teacher = kl_st, kl_ts, student, teacher


def made(rng, n, longest, scale=1.0):
    lengths = rng.integers(0, longest + 1, n)
    return [
        Along(
            *(scale * rng.random(t).astype(np.float32) for _ in range(2)),
            *(-rng.random(t).astype(np.float32) for _ in range(2)),
        )
        for t in lengths
    ]


def naive_excess(own, expert, length):
    """The definition, position by position."""

    def mean_at(answers, t):
        reached = [a[t] for a in answers if len(a) > t]
        return sum(reached) / len(reached)

    regret = sum(mean_at(own, t) for t in range(length))
    l_eps = sum(mean_at(expert, t) for t in range(length))
    return 100 * (regret - l_eps) / l_eps


def test_excess_error_is_its_definition():
    rng = np.random.default_rng(0)
    own, expert = ([rng.random(rng.integers(1, 30)) for _ in range(50)] for _ in range(2))
    curve = excess_accumulated_error(own, expert)
    assert 10 < len(curve) < 30
    for length in (1, 5, len(curve)):
        assert curve[length - 1] == pytest.approx(naive_excess(own, expert, length))
    alive = [sum(len(a) > len(curve) for a in answers) for answers in (own, expert)]
    assert min(alive) < 0.25 * 50  # one more position would rest on too few answers


def test_no_excess_where_contexts_do_not_matter():
    same = [np.full(20, 0.3)] * 10
    assert np.allclose(excess_accumulated_error(same, same), 0)
    assert np.allclose(excess_accumulated_error([2 * s for s in same], same), 100)


def test_answers_that_are_too_few_give_no_figure():
    assert len(excess_accumulated_error([np.ones(3)] * 4, [np.ones(3)] * 4)) == 0
    assert summarise([], [])["exaccerr"] is None and summarise([])["kl_st"] is None


def test_means_and_buckets():
    rng = np.random.default_rng(1)
    own, expert = made(rng, 40, 21, 2.0), made(rng, 40, 17)
    out = summarise(own, expert)
    flat = np.concatenate([a.kl_ts for a in own])
    assert out["tokens"] == len(flat) and out["samples"] == 40
    assert out["kl_ts"] == pytest.approx(flat.mean(), rel=1e-5)
    assert out["nll"] == pytest.approx(-np.concatenate([a.student for a in expert]).mean(), rel=1e-5)
    assert out["teacher_nll"] == pytest.approx(-np.concatenate([a.teacher for a in own]).mean(), rel=1e-5)
    assert out["buckets"] == ["0-3", "4-7", "8-15", "16-31"]
    third = [x for a in own for x in a.kl_st[8:16]]
    assert out["kl_st_by_position"][2] == pytest.approx(np.mean(third), rel=1e-5)


def test_standard_error_holds_dependent_tokens_together():
    rng = np.random.default_rng(2)
    answers = [np.full(rng.integers(5, 20), x) for x in rng.normal(size=200)]
    mean, error = clustered_mean(answers)
    draws = [clustered_mean([answers[i] for i in rng.integers(0, 200, 200)])[0] for _ in range(500)]
    assert error == pytest.approx(np.std(draws), rel=0.15)
    assert mean == pytest.approx(np.concatenate(answers).mean())


def test_without_references_what_needs_them_is_left_out():
    rng = np.random.default_rng(3)
    tokens = made(rng, 5, 9)
    out = measure(lambda prompts, answers: tokens, [np.ones(1)] * 5, [np.ones(1)] * 5)
    assert "nll" not in out and "exaccerr" not in out and out["kl_st"] > 0


def test_drift_is_the_divergence_from_the_start():
    """Over tokens, not over answers, and of the student's own answers alone."""
    rng = np.random.default_rng(5)
    own, moved = made(rng, 5, 9), made(rng, 5, 30)
    rollouts, asked = [np.ones(len(t.kl_st)) for t in own], []

    def start(prompts, answers):
        asked.append(answers)
        return moved

    out = measure(lambda prompts, answers: own, [np.ones(1)] * 5, rollouts, rollouts, start)
    assert out["drift"] == pytest.approx(np.concatenate([t.kl_st for t in moved]).mean(), rel=1e-6)
    assert out["drift_se"] > 0 and len(asked) == 1 and asked[0] is rollouts


def test_answer_by_answer_and_without_loops():
    rng = np.random.default_rng(4)
    own = made(rng, 30, 60)
    own[3], own[7] = (Along(*(rng.random((4, 80)).astype(np.float32) * [[9], [9], [-1], [-9]])) for _ in range(2))
    rollouts = [rng.integers(0, 10_000, len(a.kl_ts)).astype(np.int32) for a in own]
    rollouts[3], rollouts[7] = np.tile([1, 2, 3, 4], 20), np.full(80, 5)
    out = by_answer(own, rollouts)
    assert out["loops"] == pytest.approx(2 / 30)
    rest = [a for i, a in enumerate(own) if i not in (3, 7)]
    assert out["kl_ts_no_loops"] == pytest.approx(np.concatenate([a.kl_ts for a in rest]).mean(), rel=1e-5)
    assert out["teacher_nll_no_loops"] == pytest.approx(-np.concatenate([a.teacher for a in rest]).mean(), rel=1e-5)
    # The values of the answers have the token mean as their mean, and its clustered error as their error.
    values = np.array(out["by_answer"]["kl_ts"])
    mean, error = clustered_mean([a.kl_ts for a in own])
    assert values.mean() == pytest.approx(mean, abs=1e-4)
    assert values.std(ddof=1) / np.sqrt(30) == pytest.approx(error, rel=1e-3)
    assert by_answer([], []) == {
        "loops": None,
        "by_answer": {},
        "kl_ts_no_loops": None,
        "kl_st_no_loops": None,
        "teacher_nll_no_loops": None,
    }
