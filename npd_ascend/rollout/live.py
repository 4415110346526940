"""Answers asked for one batch at a time, handed back in memory: what a loop needs that trains on them at once.

Nothing is stored and nothing resumed. What pool and worker give each other is made and read here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.rollout.job import LiveJob, RolloutJob
from npd_ascend.rollout.requests import Answer, Request

if TYPE_CHECKING:
    from npd_ascend.rollout.engine import Engine


CHECK_EVERY = 10
"""Weights change before every batch here, always in the same way, so the engine's answers are checked (``check.py``)
after the first reload and then after every tenth, not after each: the check takes as long as the reload."""


@dataclass(frozen=True)
class LiveBatch:
    """Answers to one batch of prompts, in their order.

    Attributes:
        answers: one a prompt.
        load_seconds: time that the engine took to hold the weights; 0 when it already did.
        started: whether it was started for this batch (its start is then in ``load_seconds``).
        seconds: time of generation.
    """

    answers: list[Answer]
    load_seconds: float
    started: bool
    seconds: float


def ask(job: RolloutJob, prompts: Sequence[Array], seeds: Sequence[int | None]) -> LiveJob:
    """The job for a worker.

    Args:
        job: model, settings and lengths; its datasets are not looked at.
        prompts: token ids of each prompt.
        seeds: of each answer; None: greedy.
    """
    return LiveJob(fingerprint="", job=job, prompts=[p.tolist() for p in prompts], seeds=list(seeds))


def answer(asked: LiveJob, engine: Engine) -> dict[str, Any]:
    """Does what ``ask`` asked; the engine must hold the job's model. Returns what ``read`` reads.

    Raises:
        UserError: a prompt is empty, too long or of another vocabulary.
    """
    start, job = time.monotonic(), asked.job
    out: list[dict[str, Any]] = [{}] * len(asked.prompts)
    for row, (ids, seed) in enumerate(zip(asked.prompts, asked.seeds, strict=True)):
        room = min(job.settings.max_new_tokens, job.max_model_len - len(ids))
        if not ids or room < 1 or max(ids) >= job.vocabulary:
            raise UserError(
                f"prompt {row} of a live batch has {len(ids)} tokens up to id {max(ids, default=-1)}: it "
                f"must leave room within {job.max_model_len} tokens and have ids below {job.vocabulary}"
            )
        request = Request(0, row, ids, seed, room)
        engine.submit(str(row), request, engine.params(job, request))
    left = len(out)
    while left:
        for name, found in engine.step():
            out[int(name)] = found.packed()
            left -= 1
    return {"answers": out, "seconds": time.monotonic() - start}


def read(result: dict[str, Any]) -> LiveBatch:
    """What a worker gave back: ``answer``'s, with ``load_seconds`` and ``started``."""
    answers = [Answer.unpacked(a) for a in result["answers"]]
    return LiveBatch(answers, result["load_seconds"], result["started"], result["seconds"])
