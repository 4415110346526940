"""Questions to a pool: log-probs of given texts, stop texts, lengths of their own, and workers that die meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from npd_ascend.data.tokenizer import load_tokenizer  # noqa: E402
from npd_ascend.rollout.engine import set_environment  # noqa: E402
from npd_ascend.rollout.job import RolloutJob  # noqa: E402
from npd_ascend.rollout.pool import RolloutPool  # noqa: E402
from npd_ascend.rollout.questions import Asking, Question, Reply  # noqa: E402

set_environment("cpu")  # read by torch when it is imported

MODEL = Path(__file__).parents[2] / "assets" / "mini" / "teacher"
EOS = load_tokenizer(MODEL).eos_token_id


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with RolloutPool(Path(sys.executable), 2, tmp_path_factory.mktemp("logs")) as pool:
        yield pool


@pytest.fixture
def job(make_job, tmp_path) -> RolloutJob:
    vocabulary = len(load_tokenizer(MODEL))
    made = make_job(tmp_path, tmp_path, MODEL, max_model_len=256, vocabulary=vocabulary, max_num_seqs=4)
    return made.model_copy(update={"eos_token_ids": [EOS]})


def asked(pool: RolloutPool, job: RolloutJob, questions: list[Question]) -> list[Reply]:
    replies: dict[int, Reply] = {}
    pool.ask(job, MODEL, questions, replies.__setitem__)
    assert sorted(replies) == list(range(len(questions)))
    return [replies[i] for i in range(len(questions))]


def test_logprobs_of_given_texts(pool, job):
    """One token goes through the prefix cache, several through a prefill: both say what a plain forward pass says."""
    import torch

    from npd_ascend.rollout.forward import token_logprobs

    rng = np.random.default_rng(0)
    shared = rng.integers(5, job.vocabulary, 70).tolist()  # longer than blocks of the cache
    questions = [
        Question([*shared, *rng.integers(5, job.vocabulary, n).tolist()], rng.integers(5, job.vocabulary, m).tolist())
        for n in (1, 7, 30)
        for m in (1, 1, 2, 5)
    ]
    for question, reply in zip(questions, asked(pool, job, questions), strict=True):
        expected = token_logprobs(MODEL, question.ids + question.given, torch.float32, torch.float32, job.vocabulary)
        assert reply.logprob == pytest.approx(float(expected[-len(question.given) :].sum()), abs=1e-3)
        assert (reply.ids, reply.finish) == ([], "given")


def test_greedy_tokens_are_known_as_such(pool, job):
    prompt = list(range(5, 25))
    (answer,) = asked(pool, job, [Question(prompt, [], 6)])
    first = answer.ids[: 1 + (answer.ids[0] != EOS)]
    other = [5 if first[0] != 5 else 6]
    replies = asked(pool, job, [Question(prompt, g) for g in (first[:1], first, other, [first[0], *other])])
    assert [r.greedy for r in replies[:3]] == [True, True, False]


def test_lengths_and_stop_texts_of_their_own(pool, job):
    tokenizer = load_tokenizer(MODEL)
    prompt = list(range(5, 25))
    plain, short = asked(pool, job, [Question(prompt, [], 40), Question(prompt, [], 3)])
    assert short.ids == plain.ids[:3] and short.finish == "length"
    text = tokenizer.decode(plain.ids, skip_special_tokens=True)
    stop = text[4:6]
    (stopped,) = asked(pool, job, [Question(prompt, [], 40, [stop])])
    assert (
        stopped.finish == "stop" and len(stopped.ids) < len(plain.ids) and stopped.ids == plain.ids[: len(stopped.ids)]
    )
    assert stop in tokenizer.decode(stopped.ids, skip_special_tokens=True)


def test_seeds_and_shuffled_batches(pool, job):
    """A seed decides an answer, whatever else is in the batch."""
    questions = [Question(list(range(5, 15 + i)), [], 12, seed=s, temperature=1.5) for i in range(6) for s in (1, 2)]
    first = asked(pool, job, questions)
    assert [r.ids for r in asked(pool, job, questions[::-1])][::-1] == [r.ids for r in first]
    assert sum(a.ids != b.ids for a, b in zip(first[::2], first[1::2], strict=True)) >= 3


def test_a_worker_that_dies_loses_no_question(pool, job):
    questions = [Question([5 + i, 6, 7], [], 30) for i in range(40)]
    calm, replies, killed = asked(pool, job, questions), {}, []

    def take(number: int, reply: Reply) -> None:
        replies[number] = reply
        if not killed:
            killed.append(pool._workers[0]._popen.pid)
            os.kill(killed[0], signal.SIGKILL)

    pool.ask(job, MODEL, questions, take)
    assert [replies[i].ids for i in range(40)] == [r.ids for r in calm] and killed[0] != pool._workers[0]._popen.pid


def test_blocks_are_handed_out_and_taken_back(job):
    """Without an engine: no question is lost or answered twice, however events come."""
    questions = [Question([5], [], 1)] * 40
    got: list[int] = []
    asking = Asking(job, MODEL, False, questions, lambda number, reply: got.append(number), 2)
    reply = {"ids": [1], "finish": "stop"}
    first, second = asking.command(0), asking.command(1)
    assert first and second and len(first["job"]["questions"]) == 16  # four times max_num_seqs
    numbers = [n for n, _ in first["job"]["questions"]]
    assert asking.hear(0, {"event": "replies", "replies": [[n, reply] for n in numbers[:13]]}) and got == numbers[:13]
    more = asking.more(0)
    assert more and len(more["job"]["questions"]) == 8 and not asking.left() and asking.more(1) is None
    asking.lose(0)
    assert asking.left()
    again = asking.command(1)
    assert again and [n for n, _ in again["job"]["questions"]] == [13, 14, 15, *range(32, 40)]
    rest = [n for n in range(40) if n not in got]
    assert not asking.hear(1, {"event": "replies", "replies": [[n, reply] for n in [*rest, 0, 1]]})
    assert sorted(got) == list(range(40)) and asking.command(0) is None
