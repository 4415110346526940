"""Rollouts made from the data's own answers: no engine, any interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npd_ascend.errors import UserError
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.requests import Answer, table_of
from npd_ascend.rollout.shards import Board, commit_table


def answer_from_references(job: RolloutJob, report: Callable[..., None]) -> None:
    """Turns ``reference_ids``, ``label_ids`` and ``reference_masked`` of the prompts into rollouts, log-probs null.

    Args:
        job: a job with ``settings.source == "reference"``.
        report: called after each shard, see ``generate``.

    Raises:
        UserError: a prompt has no reference answer, or labels of another length.
    """
    board = Board(job)
    while (taken := board.take()) is not None:
        index, prompts = taken
        answers = [
            _answer(job, *row)
            for row in zip(
                prompts["prompt_index"].to_pylist(),
                prompts["reference_ids"].to_pylist(),
                prompts["label_ids"].to_pylist(),
                strict=True,
            )
        ]
        masked = prompts["reference_masked"] if "reference_masked" in prompts.column_names else None
        table = table_of(job, prompts, answers, prompts["label_ids"], masked)
        commit_table(job, board.dataset, index, table, seconds=0.0)
        board.release(index)
        report(samples=len(answers), tokens=sum(len(a.ids) for a in answers), have={index: len(answers)})
    board.finish()


def _answer(job: RolloutJob, index: int, ids: list[int] | None, labels: list[int] | None) -> Answer:
    if ids is None:
        raise UserError(
            f"{job.prompts}: prompt {index} has no reference answer; set data.response_field, or use "
            "another rollout.source"
        )
    if labels is not None and len(labels) != len(ids):
        raise UserError(
            f"{job.prompts}: prompt {index} has {len(labels)} labels for {len(ids)} tokens; "
            "data.labels_field must give one label a token"
        )
    return Answer(np.asarray(ids, np.int32), None, "reference")
