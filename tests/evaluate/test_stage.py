"""The evaluate stage on datasets written in the test."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from npd_ascend.config.schema import EvaluateConfig
from npd_ascend.data.answers import Decoder, split_thinking
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.evaluate.interval import wilson
from npd_ascend.evaluate.job import EvaluateJob
from npd_ascend.evaluate.stage import run, summarise
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.schemas import PROMPTS, ROLLOUTS

MINI = Path(__file__).resolve().parents[2] / "assets" / "mini"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINI / "tokenizer")


@pytest.fixture
def evaluate(tmp_path, tokenizer):
    """Writes two shards of prompts and answers (text, path, finish) and runs the stage over them."""

    def go(prompts, answers, samples=0, checker="exact", data=None, fingerprint="f"):
        def ids(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        asked, given = Dataset(tmp_path / "p", "prompts", "p"), Dataset(tmp_path / "r", "rollouts", "r")
        half = (len(prompts) + 1) // 2
        for shard, part in enumerate((range(half), range(half, len(prompts)))):
            asked.write_table(
                shard,
                pa.Table.from_pylist(
                    [
                        {
                            "prompt_index": i,
                            "prompt_id": i,
                            "prompt_ids": [1],
                            "reference_ids": None,
                            "label_ids": None,
                            "answer": prompts[i][1],
                            "text": prompts[i][0],
                        }
                        for i in part
                    ],
                    schema=PROMPTS,
                ),
            )
            given.write_table(
                shard,
                pa.Table.from_pylist(
                    [
                        {
                            "sample_id": 0,
                            "prompt_index": i,
                            "path": path,
                            "response_ids": ids(text),
                            "logprobs": None,
                            "label_ids": None,
                            "finish_reason": finish,
                        }
                        for i in part
                        for text, path, finish in answers[i]
                    ],
                    schema=ROLLOUTS,
                ),
            )
        asked.finish(2)
        given.finish(2)
        run(
            EvaluateJob(
                out=tmp_path / "out" / "e.json",
                fingerprint=fingerprint,
                prompts=tmp_path / "p",
                rollouts=tmp_path / "r",
                tokenizer=MINI / "tokenizer",
                name="start",
                eos_token_ids=[4],
                settings=EvaluateConfig(checker=checker, checker_data=data, samples=samples),
            )
        )
        return json.loads((tmp_path / "out" / "e.json").read_text())

    return go


def test_greedy(evaluate):
    prompts = [("a1 a2", "b1"), ("a1 a3", "b2"), ("a1 a4", "b3")]
    answers = [[("b1[unused10]", 0, "stop")], [("b1 b2[unused10]", 0, "stop")], [("b3 b3 b3", 0, "length")]]
    out = evaluate(prompts, answers)
    assert (out["name"], out["n"], out["correct"], out["accuracy"]) == ("start", 3, 1, pytest.approx(1 / 3))
    assert out["interval"] == pytest.approx(wilson(1, 3))
    assert out["truncated"] == pytest.approx(1 / 3) and out["mean_tokens"] == pytest.approx(8 / 3)
    assert out["samples"][1] == {"prompt": "a1 a3", "answer": "b2", "response": "b1 b2", "correct": False}
    assert out["pass_at"] == {}


def test_greedy_and_sampled(evaluate):
    ok, no = "b1[unused10]", "b2[unused10]"
    answers = [[(no, 0, "stop"), (ok, 1, "stop"), (no, 2, "stop")], [(ok, 0, "stop"), (ok, 1, "stop"), (ok, 2, "stop")]]
    out = evaluate([("q", "b1"), ("q", "b1")], answers, samples=2)
    assert (out["n"], out["correct"], out["accuracy"]) == (2, 1, 0.5)
    assert out["pass_at"] == {"1": pytest.approx(0.75), "2": pytest.approx(1.0)}
    low, high = out["pass_at_interval"]["1"]
    assert low == pytest.approx(0.5) and high == pytest.approx(1.0)


def test_sampled_only():
    results = {0: [(0, True), (1, False)], 1: [(0, True), (1, True)]}
    out = summarise(results, samples=2)
    assert (out["n"], out["accuracy"], out["pass_at"]["1"], out["pass_at"]["2"]) == (2, 0.75, 0.75, 1.0)


def test_maze_assets_agree_with_their_checker(evaluate):
    rows = [json.loads(line) for line in (MINI / "eval.jsonl").read_text().splitlines()[:20]]
    good = evaluate(
        [(r["prompt"], r["answer"]) for r in rows],
        [[(r["answer"] + " [unused10]", 0, "stop")] for r in rows],
        checker="maze",
        data=MINI / "maze.json",
    )
    assert good["accuracy"] == 1.0
    bad = evaluate(
        [(r["prompt"], r["answer"]) for r in rows],
        [[(" ".join(r["answer"].split()[:-1]), 0, "stop")] for r in rows],
        checker="maze",
        data=MINI / "maze.json",
        fingerprint="g",
    )
    assert bad["accuracy"] == 0.0


def test_done_result_is_left_alone(evaluate, tmp_path):
    first = evaluate([("q", "b1"), ("q", "b1")], [[("b1", 0, "stop")]] * 2)
    before = (tmp_path / "out" / "e.json").stat().st_mtime_ns
    assert evaluate([("q", "b2"), ("q", "b2")], [[("b1", 0, "stop")]] * 2) == first
    assert (tmp_path / "out" / "e.json").stat().st_mtime_ns == before
    assert evaluate([("q", "b2"), ("q", "b2")], [[("b1", 0, "stop")]] * 2, fingerprint="g")["correct"] == 0


def test_nothing_to_check(evaluate):
    with pytest.raises(UserError, match="no answers"):
        evaluate([("q", "b1"), ("q", "b1")], [[], []])


def test_thinking_is_left_out(tokenizer):
    decode = Decoder(tokenizer, [4])

    def answer(text):
        return decode(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert answer("[unused16] a1 a2 [unused17] b1 b2 [unused10]") == "b1 b2"
    assert answer("a1 [unused17] b1") == "b1"
    assert answer("b3 [unused16] a1 a2") == "b3"
    assert answer("[unused10]") == answer("") == ""
    assert decode([13, 90, 14]) == decode([13, 14])  # an id from the padding of the logits
    assert split_thinking("<think>x</think>y") == ("x", "y")
    assert split_thinking("<think>unfinished") == ("unfinished", "")


def test_thinking_is_shown_and_counted(evaluate):
    answers = [
        [("[unused16] a1 a2 [unused17] b1 [unused10]", 0, "stop")],
        [("[unused16] a1 a2", 0, "length")],
        [("b3[unused10]", 0, "stop")],
    ]
    out = evaluate([("q", "b1"), ("q", "b1"), ("q", "b3")], answers)
    assert out["correct"] == 2
    assert (out["thinking"], out["unfinished_thinking"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert [s.get("thinking") for s in out["samples"]] == ["a1 a2", "a1 a2", None]
    assert [s["response"] for s in out["samples"]] == ["b1", "", "b3"]
