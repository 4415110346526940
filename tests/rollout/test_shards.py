"""Requests, claims, journals and commits, without an engine."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.rollout.requests import Answer, Request, requests_of
from npd_ascend.rollout.shards import Board, Shard, journal_path
from npd_ascend.store.claims import Tickets
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import sample_id, sample_seed

VOCAB = 128


def naive_answer(request: Request) -> Answer:
    """Something that depends on the request alone."""
    rng = np.random.default_rng([request.seed or 0, *request.prompt_ids])
    n = int(rng.integers(0, request.max_tokens + 1))
    return Answer(
        rng.integers(0, VOCAB, n).astype(np.int32),
        -rng.random(n, np.float32),
        "length" if n == request.max_tokens else "stop",
    )


def answer_all(job, stop_after: int | None = None) -> int:
    """Answers requests one by one in a scrambled order; ``stop_after``: leaves as a killed worker would."""
    made, board = 0, Board(job)
    while (taken := board.take()) is not None:
        shard = Shard(job, board.dataset, *taken)
        for i in np.random.default_rng(made).permutation(len(shard.pending)):
            if made == stop_after:
                return made
            shard.add([(shard.pending[i], naive_answer(shard.pending[i]))])
            made += 1
        shard.commit()
        board.release(shard.index)
    board.finish()
    return made


def test_requests_carry_the_seeds_of_their_samples(tmp_path, make_prompts, make_job):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 5, 8), samples=2, generation=3, max_new_tokens=100)
    table = Dataset.open(job.prompts, "prompts").read(0)
    requests = requests_of(job, 0, table)
    assert [r.row for r in requests] == list(range(15))
    for place, prompt in enumerate(table.to_pylist()):
        for path in range(3):
            r = requests[place * 3 + path]
            assert r.prompt_ids == prompt["prompt_ids"]
            assert r.max_tokens == min(100, 128 - len(r.prompt_ids))
            expected = None if path == 0 else sample_seed(7, sample_id(prompt["prompt_id"], path, 3))
            assert r.seed == expected
    assert len({r.seed for r in requests if r.seed is not None}) == 10


def test_without_a_greedy_path_all_paths_are_sampled(tmp_path, make_prompts, make_job):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 2, 8), samples=2, greedy=False)
    requests = requests_of(job, 0, Dataset.open(job.prompts, "prompts").read(0))
    assert len(requests) == 4 and all(r.seed is not None for r in requests)


@pytest.mark.parametrize(
    ("ids", "text"), [([], "no tokens"), ([5, VOCAB], "knows ids below 128"), ([5] * 128, "leaves no room")]
)
def test_prompts_that_cannot_be_answered(tmp_path, make_prompts, make_job, ids, text):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 0, 8, ids=[[6, 7], ids]))
    with pytest.raises(UserError, match=text) as e:
        requests_of(job, 0, Dataset.open(job.prompts, "prompts").read(0))
    assert "prompt 1" in str(e.value) and "\n" not in str(e.value)


def test_rows_are_in_order_whatever_the_order_of_answers(tmp_path, make_prompts, make_job):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 20, 8), samples=1)
    assert answer_all(job) == 40
    rollouts, source = Dataset.open(job.out, "rollouts"), Dataset.open(job.prompts, "prompts")
    assert rollouts.shards == 3
    rows = rollouts.read_all().to_pylist()
    prompts = source.read_all().to_pylist()
    assert [(r["prompt_index"], r["path"]) for r in rows] == [(i, p) for i in range(20) for p in range(2)]
    for row in rows:
        prompt = prompts[row["prompt_index"]]
        sample = sample_id(prompt["prompt_id"], row["path"], 0)
        assert row["sample_id"] == sample
        seed = sample_seed(7, sample) if row["path"] else None
        room = min(40, 128 - len(prompt["prompt_ids"]))
        answer = naive_answer(Request(0, 0, prompt["prompt_ids"], seed, room))
        assert row["response_ids"] == answer.ids.tolist()
        assert np.array_equal(np.float32(row["logprobs"]), answer.logprobs)
        assert row["finish_reason"] == answer.finish and row["label_ids"] is None
    extra = rollouts.extra
    assert extra["samples"] == 40 and extra["greedy"] == extra["sampled"] == 20
    assert extra["tokens"] == sum(len(r["response_ids"]) for r in rows)
    assert extra["truncated"] == sum(r["finish_reason"] == "length" for r in rows)


def test_stopping_anywhere_and_resuming_repeats_nothing(tmp_path, make_prompts, make_job):
    prompts = make_prompts(tmp_path / "p", 12, 5)
    whole = make_job(tmp_path / "whole", prompts)
    answer_all(whole)
    for stop in (0, 1, 9, 10, 11, 23):
        job = make_job(tmp_path / f"stop{stop}", prompts)
        made = answer_all(job, stop)
        assert made == stop and not Dataset(job.out, "rollouts", "rollouts").complete
        made += answer_all(job)
        assert made == 24
        assert Dataset.open(job.out, "rollouts").read_all() == Dataset.open(whole.out, "rollouts").read_all()
        assert not list(job.out.glob("*.journal"))


def test_torn_journal_loses_only_its_last_sample(tmp_path, make_prompts, make_job):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 12, 12))
    answer_all(job, 10)
    journal = journal_path(Dataset(job.out, "rollouts", job.fingerprint), 0)
    journal.write_bytes(journal.read_bytes()[:-3])
    assert answer_all(job) == 24 - 9


def test_journal_of_other_inputs_is_not_used(tmp_path, make_prompts, make_job):
    prompts = make_prompts(tmp_path / "p", 6, 6)
    answer_all(make_job(tmp_path / "out", prompts, fingerprint="old"), 5)
    assert answer_all(make_job(tmp_path / "out", prompts, fingerprint="new")) == 12
    assert not list((tmp_path / "out").glob("*.journal"))


def test_a_worker_that_is_given_up_changes_nothing_any_more(tmp_path, make_prompts, make_job):
    """It has a shard and half its answers when it is cut off, and comes back when another worker has made them all."""
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 12, 4))
    dataset = Dataset(job.out, "rollouts", job.fingerprint)
    tickets = Tickets(job.out, lambda: set(dataset.missing(3)))
    first, second = (job.model_copy(update={"own": tickets.admit(i)}) for i in (0, 1))
    board = Board(first)
    shard = Shard(first, board.dataset, *board.take())
    shard.add([(r, naive_answer(r)) for r in shard.pending[:5]])
    assert answer_all(second) == 16 and dataset.missing(3) == [0] and not dataset.complete
    tickets.expel(0)
    assert tickets.free == {0} and answer_all(second) == 3  # five stood in the journal
    before = {p: p.read_bytes() for p in job.out.rglob("*") if p.is_file()}
    shard.add([(r, Answer(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop")) for r in shard.pending[5:]])
    with pytest.raises(FileNotFoundError):
        shard.commit()
    assert board.take() is None
    with pytest.raises(FileNotFoundError):
        board.dataset.finish(3)
    assert before == {p: p.read_bytes() for p in job.out.rglob("*") if p.is_file()}
    tickets.close()
    assert dataset.complete and not list(job.out.glob(".tmp-*")) and not list(job.out.glob("*.journal"))


def test_no_prompts_make_an_empty_dataset(tmp_path, make_job):
    source = Dataset(tmp_path / "p", "prompts", "none")
    source.folder.mkdir()
    source.finish(0)
    job = make_job(tmp_path / "out", tmp_path / "p")
    assert answer_all(job) == 0
    assert Dataset.open(job.out, "rollouts").rows == 0


def test_damaged_prompts_are_named(tmp_path, make_prompts, make_job):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 12, 4))
    path = tmp_path / "p" / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShard) as e:
        answer_all(job)
    assert e.value.index == 1


def test_claims_scale_to_many_shards(tmp_path: Path, make_prompts, make_job):
    job = make_job(tmp_path / "out", make_prompts(tmp_path / "p", 300, 1), samples=0)
    start = time.monotonic()
    assert answer_all(job) == 300
    assert time.monotonic() - start < 60
