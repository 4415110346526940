"""``prompts`` + ``rollouts`` -> accuracy with its interval, as one JSON file. Needs no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.data.answers import Decoder, answered
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.evaluate.interval import bootstrap, pass_at_k, wilson
from npd_ascend.evaluate.job import EvaluateJob
from npd_ascend.progress import Meter
from npd_ascend.store.atomic import read_sealed, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.tasks.registry import Attempt, Checker

SAMPLES = 8


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
    checker = Checker(job.settings.checker, job.settings.checker_data)
    decode = Decoder(load_tokenizer(job.tokenizer, job.trust_remote_code), job.eos_token_ids)
    prompts, rollouts = Dataset.open(job.prompts, "prompts"), Dataset.open(job.rollouts, "rollouts")
    results: dict[int, list[tuple[int, bool]]] = {}
    samples: list[dict[str, Any]] = []
    truncated = tokens = count = thoughtful = unfinished = 0
    with Meter(f"evaluate {job.name}", rollouts.rows, "answers") as meter:
        for row in answered(prompts, rollouts):
            thinking, answer = decode.parts(row["response_ids"])
            cut = row["finish_reason"] == "length"
            attempt = Attempt(row["text"], answer, row["answer"], len(row["response_ids"]), cut)
            correct = checker(attempt)
            results.setdefault(row["prompt_index"], []).append((row["path"], correct))
            truncated += cut
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


def _done(path: Path, fingerprint: str) -> bool:
    return (read_sealed(Path(path)) or {}).get("fingerprint") == fingerprint
