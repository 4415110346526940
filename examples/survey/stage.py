"""Counts the answers of a generation, and those that were cut short or ended in a loop."""

from __future__ import annotations

from npd_ascend.survey.job import SurveyJob

from npd_ascend.store.atomic import write_sealed
from npd_ascend.store.dataset import Dataset


def run(job: SurveyJob) -> None:
    """Writes the counts; the fingerprint beside them says of which answers they are."""
    answers = tokens = loops = 0
    rollouts = Dataset.open(job.rollouts, "rollouts")
    for table in rollouts.iter_tables(["tokens", "loops"]):
        answers += len(table)
        tokens += sum(table["tokens"].to_pylist())
        loops += sum(table["loops"].to_pylist())
    write_sealed(
        job.out,
        {
            "fingerprint": job.fingerprint,
            "answers": answers,
            "mean_tokens": tokens / max(answers, 1),
            "truncated": rollouts.extra["truncated"],
            "loops": loops,
        },
    )
