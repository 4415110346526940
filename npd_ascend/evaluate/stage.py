"""``prompts`` + ``rollouts`` -> accuracy with its interval, as one JSON file. Needs no engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.data.pangu import THINK_END, THINK_START
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.evaluate.interval import bootstrap, pass_at_k, wilson
from npd_ascend.evaluate.job import EvaluateJob
from npd_ascend.evaluate.registry import CHECKERS, Attempt, load_checker_data
from npd_ascend.progress import Meter
from npd_ascend.store.atomic import read_sealed, write_sealed
from npd_ascend.store.dataset import Dataset

SAMPLES = 8
_THINK = ((THINK_START, THINK_END), ("<think>", "</think>"))


def run(job: EvaluateJob) -> None:
    """Checks every rollout and writes ``job.out``.

    With a greedy path, ``accuracy`` is its share of right answers, with a Wilson 95 % interval; ``pass_at`` then
    describes the sampled paths. Without one, ``accuracy`` is the mean over prompts of each prompt's share of right
    samples, with a bootstrap interval over prompts. ``pass_at`` maps k (1, 2, 4, ... and n) to the estimate,
    ``pass_at_interval`` to its bootstrap interval. ``thinking`` is the share of answers that think,
    ``unfinished_thinking`` of those that came to no answer by it; what is thought is not checked.

    Raises:
        UserError: unknown checker, unusable checker data, rollouts of other prompts, or nothing to check.
    """
    if _done(job.out, job.fingerprint):
        return
    checker, data = CHECKERS.find(job.settings.checker), load_checker_data(job.settings.checker_data)
    decode = Decoder(load_tokenizer(job.tokenizer, job.trust_remote_code), job.eos_token_ids)
    prompts, rollouts = Dataset.open(job.prompts, "prompts"), Dataset.open(job.rollouts, "rollouts")
    results: dict[int, list[tuple[int, bool]]] = {}
    samples: list[dict[str, Any]] = []
    truncated = tokens = count = thoughtful = unfinished = 0
    with Meter(f"evaluate {job.name}", rollouts.rows, "answers") as meter:
        for row in _rows(prompts, rollouts):
            thinking, answer = decode.parts(row["response_ids"])
            attempt = Attempt(row["text"], answer, row["answer"])
            correct = bool(checker(attempt, data))
            results.setdefault(row["prompt_index"], []).append((row["path"], correct))
            truncated += row["finish_reason"] == "length"
            thoughtful += bool(thinking)
            unfinished += bool(thinking) and not answer
            tokens, count = tokens + len(row["response_ids"]), count + 1
            if row["path"] == 0 and len(samples) < SAMPLES:
                samples.append(
                    {
                        "prompt": attempt.prompt,
                        "answer": attempt.answer,
                        "response": attempt.response,
                        "correct": correct,
                        **({"thinking": thinking} if thinking else {}),
                    }
                )
            meter.advance(tokens=len(row["response_ids"]))
    if not count:
        raise UserError(f"{job.rollouts}: there are no answers to check")
    write_sealed(
        job.out,
        {
            "name": job.name,
            "fingerprint": job.fingerprint,
            **summarise(results, job.settings.samples),
            "truncated": truncated / count,
            "mean_tokens": tokens / count,
            "thinking": thoughtful / count,
            "unfinished_thinking": unfinished / count,
            "samples": samples,
        },
    )


def summarise(results: dict[int, list[tuple[int, bool]]], samples: int) -> dict[str, Any]:
    """Accuracy and pass@k from the outcome of every path of every prompt.

    Args:
        results: prompt index to (path, correct) of each of its answers.
        samples: sampled paths a prompt; any path beyond them is path 0, the greedy one.

    Returns:
        ``n``, ``correct``, ``accuracy``, ``interval``, ``pass_at``, ``pass_at_interval``.
    """
    greedy = [dict(answers).get(0) for answers in results.values() if len(answers) > samples]
    sampled = [[right for path, right in answers if path or len(answers) <= samples] for answers in results.values()]
    sampled = [s for s in sampled if s]
    out: dict[str, Any] = {}
    if greedy:
        right = sum(map(bool, greedy))
        out = {
            "n": len(greedy),
            "correct": right,
            "accuracy": right / len(greedy),
            "interval": list(wilson(right, len(greedy))),
        }
    elif sampled:
        shares = np.array([np.mean(s) for s in sampled])
        out = {
            "n": len(shares),
            "correct": int(sum(map(sum, sampled))),
            "accuracy": float(shares.mean()),
            "interval": list(bootstrap(shares)),
        }
    out["pass_at"], out["pass_at_interval"] = {}, {}
    if sampled:
        n, right_of = np.array([len(s) for s in sampled]), np.array([sum(s) for s in sampled])
        most = int(n.min())
        for k in sorted({1 << i for i in range(most.bit_length())} | {most}):
            values = pass_at_k(n, right_of, k)
            out["pass_at"][str(k)] = float(values.mean())
            out["pass_at_interval"][str(k)] = list(bootstrap(values))
    return out


class Decoder:
    """Turns answer ids into the text that is checked: no special tokens, no thinking.

    Args:
        tokenizer: transformers tokenizer.
        eos: ids that end an answer; one that is no special token of the tokenizer is cut off as well.
    """

    def __init__(self, tokenizer: Any, eos: list[int]):
        self.tokenizer, self.eos = tokenizer, set(eos)
        vocab = tokenizer.get_vocab()
        self.marks = [(vocab[a], vocab[b]) for a, b in _THINK if a in vocab and b in vocab]

    def __call__(self, ids: list[int]) -> str:
        return self.parts(ids)[1]

    def parts(self, ids: list[int]) -> tuple[str, str]:
        """Thinking and answer of one response; the answer is empty where the tokens ran out while thinking."""
        while ids and ids[-1] in self.eos:
            ids = ids[:-1]
        thought: list[int] = []
        for start, end in self.marks:
            if end in ids:
                cut = len(ids) - ids[::-1].index(end)
                thought, ids = ids[:cut], ids[cut:]
            elif start in ids:
                cut = ids.index(start)
                thought, ids = ids[cut:], ids[:cut]
        thinking, answer = split_thinking(self._text(ids))
        return (_plain(self._text(thought)) + thinking).strip(), answer.strip()

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking and what follows its last part; an unfinished one leaves what comes before it."""
    thinking = ""
    for start, end in _THINK:
        before, mark, text = text.rpartition(end)
        text, opened, unfinished = text.partition(start)
        thinking += before * bool(mark) + unfinished
    return _plain(thinking), text


def _plain(text: str) -> str:
    for pair in _THINK:
        for mark in pair:
            text = text.replace(mark, "")
    return text


def _rows(prompts: Dataset, rollouts: Dataset) -> Iterator[dict[str, Any]]:
    """Rollout rows joined with text and answer of their prompts, shard by shard."""
    if prompts.shards != rollouts.shards:
        raise UserError(
            f"{rollouts.folder}: answers {rollouts.shards} shards of prompts, {prompts.folder} has {prompts.shards}"
        )
    for shard in range(prompts.shards):
        asked = prompts.read(shard, ["prompt_index", "text", "answer"]).to_pylist()
        by_index = {row["prompt_index"]: row for row in asked}
        answers = rollouts.read(shard, ["prompt_index", "path", "response_ids", "finish_reason"])
        for row in answers.to_pylist():
            if row["prompt_index"] not in by_index:
                raise UserError(
                    f"{rollouts.folder}: shard {shard} answers prompt {row['prompt_index']}, which is not "
                    f"in shard {shard} of {prompts.folder}"
                )
            yield {**row, **by_index[row["prompt_index"]]}


def _done(path: Path, fingerprint: str) -> bool:
    return (read_sealed(Path(path)) or {}).get("fingerprint") == fingerprint
