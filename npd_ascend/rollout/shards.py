"""Shards shared by several workers: claimed, journaled sample by sample, committed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.requests import Answer, Request, requests_of, table_of
from npd_ascend.store.claims import Claims
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.journal import Journal


class Shard:
    """A claimed shard on its way from prompts to rollouts.

    Opening it replays the journal of a worker that died; ``pending`` is what is still to be generated.

    Attributes:
        index: number of the shard.
        pending: requests without an answer, in row order.
        rows: samples in all.
        left: samples without an answer.
        seconds: time of generation spent on it, over all workers that had it.
    """

    def __init__(self, job: RolloutJob, dataset: Dataset, index: int, prompts: pa.Table):
        self.job, self.dataset, self.index = job, dataset, index
        self.prompts = prompts
        requests = requests_of(job, index, prompts)
        self._answers: list[Answer | None] = [None] * len(requests)
        self._journal = Journal(journal_path(dataset, index))
        self.seconds = 0.0
        for record in self._journal.replay():
            self._answers[record["row"]] = Answer.unpacked(record)
            self.seconds = max(self.seconds, record["seconds"])
        self.pending = [r for r in requests if self._answers[r.row] is None]
        self.rows, self.left = len(requests), len(self.pending)

    @property
    def finished(self) -> bool:
        """Whether every sample has its answer."""
        return self.left == 0

    def add(self, answers: list[tuple[Request, Answer]]) -> None:
        """Takes finished samples; they survive a kill once this returns."""
        self.journal(answers)
        self.take(answers)

    def journal(self, answers: list[tuple[Request, Answer]]) -> None:
        """Writes finished samples down; safe in another thread than ``take``."""
        self._journal.append_many([{"row": r.row, "seconds": round(self.seconds, 3), **a.packed()} for r, a in answers])

    def take(self, answers: list[tuple[Request, Answer]]) -> None:
        """Counts finished samples as answered."""
        for request, answer in answers:
            self.left -= self._answers[request.row] is None
            self._answers[request.row] = answer

    def commit(self) -> None:
        """Writes the shard of rollouts and drops the journal."""
        answers = [a for a in self._answers if a is not None]
        commit_table(self.job, self.dataset, self.index, table_of(self.job, self.prompts, answers), self.seconds)
        self._journal.remove()


def journal_path(dataset: Dataset, index: int) -> Path:
    """Journal of a shard; the fingerprint in its name keeps answers to other inputs out."""
    return dataset.folder / f"shard-{index:05d}.{dataset.fingerprint}.journal"


def commit_table(job: RolloutJob, dataset: Dataset, index: int, table: pa.Table, seconds: float) -> None:
    """Commits a table of rollouts with the counts that ``finish`` adds up."""
    tokens = int(pc.sum(pc.list_value_length(table["response_ids"])).as_py() or 0)
    truncated = table["finish_reason"].to_pylist().count("length")
    sampled = job.settings.source != "reference"
    greedy = len(table) // job.settings.paths if sampled and job.settings.greedy else 0
    dataset.write_table(
        index,
        table,
        tokens=tokens,
        truncated=truncated,
        greedy=greedy,
        sampled=len(table) - greedy if sampled else 0,
        seconds=round(seconds, 3),
    )


class Board:
    """What is left of a job, as seen by one worker.

    Args:
        job: the job.

    Attributes:
        dataset: the rollouts.
        shards: how many there are to be.
        open: whether there was any to take at the start.

    Raises:
        UserError: the prompts are not there.
    """

    def __init__(self, job: RolloutJob):
        self.job = job
        self.source = Dataset.open(job.prompts, "prompts")
        self.dataset = Dataset(job.out, "rollouts", job.fingerprint, job.own)
        self.shards = self.source.shards
        self._claims = Claims(job.own, self.dataset.missing(self.shards))
        self.open = self._claims.any

    def take(self) -> tuple[int, pa.Table] | None:
        """Claims the next shard that no other worker holds: its number and its prompts; None when there is none.

        Raises:
            CorruptShard: the prompts shard is damaged.
        """
        while (index := self._claims.take()) is not None:
            if self.dataset.record(index) is None:
                return index, self.source.read(index)
            self._claims.release(index)  # of a worker that was lost just after it had made it
        return None

    def release(self, index: int) -> None:
        """Says that a shard is committed."""
        self._claims.release(index)

    def finish(self) -> bool:
        """Ends this worker's part; whoever finds all shards committed writes the manifest, which is always the same.

        Returns:
            Whether the dataset is complete.
        """
        if self.dataset.complete:
            return True
        records = [r for r in map(self.dataset.record, range(self.shards)) if r]
        if len(records) < self.shards:
            return False
        for left in self.dataset.folder.glob("shard-*.journal"):
            left.unlink(missing_ok=True)
        total = {
            key: sum(r["meta"][key] for r in records) for key in ("tokens", "truncated", "greedy", "sampled", "seconds")
        }
        total["seconds"] = round(total["seconds"], 3)
        self.dataset.finish(
            self.shards,
            samples=sum(r["rows"] for r in records),
            generation=self.job.generation,
            source=self.job.settings.source,
            **total,
        )
        return True
