"""Stage entry: one process answers a whole job, or its share of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from npd_ascend.config.jobs import RolloutJob
from npd_ascend.errors import UserError
from npd_ascend.progress import Meter
from npd_ascend.rollout.reference import answer_from_references
from npd_ascend.rollout.shards import Board
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import check_seals

if TYPE_CHECKING:
    from npd_ascend.rollout.engine import Engine

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOLCK)


def run(job: RolloutJob) -> None:
    """Makes the ``rollouts`` of a job in this process, resuming where an earlier one stopped.

    With ``settings.source == "reference"`` no engine is needed and any interpreter will do; otherwise vLLM's.

    Raises:
        UserError: prompts, model or settings do not fit together.
        CorruptShard: a prompts shard is damaged.
    """
    tally = Tally(job)
    engine = work(job, None, tally)
    tally.close()
    if engine is not None:
        engine.close()


def work(job: RolloutJob, engine: Engine | None, report: Callable[..., None],
         loaded: Callable[[str], None] = lambda how: None) -> Engine | None:
    """Does a worker's share of a job with a living engine, or with a new one where there is none.

    Args:
        job: the job.
        engine: engine of an earlier job that ``suits`` this one; reloaded when the model differs.
        report: told the counts of ``generate`` as they grow.
        loaded: told ``start`` or ``reload`` when the engine is ready.

    Returns:
        The engine, for the next job; None if none was needed.

    Raises:
        UserError, CorruptShard: see ``run``.
    """
    try:
        return _work(job, engine, report, loaded)
    except OSError as e:
        if e.errno in _NO_ROOM:
            raise UserError(f"{e.filename or job.out}: {e.strerror}; make room there or use another run.dir, then run "
                            "the same command again") from e
        raise


def _work(job: RolloutJob, engine: Engine | None, report: Callable[..., None],
          loaded: Callable[[str], None]) -> Engine | None:
    with Board(job) as board:
        if not board.open:
            board.finish()
            return engine
    if job.settings.source == "reference":
        answer_from_references(job, report)
        return engine
    from npd_ascend.rollout.generate import generate

    engine = hold(job, engine, loaded)
    generate(job, engine, report)
    return engine


def hold(job: RolloutJob, engine: Engine | None, loaded: Callable[[str], None]) -> Engine:
    """An engine with a job's weights: a new one where there is none, else a living one, reloaded where needed.

    Args:
        job: the job.
        engine: one that ``suits`` it, or None.
        loaded: told ``start`` or ``reload`` when it has taken the weights.

    Raises:
        CorruptSnapshot: a run wrote the checkpoint, and it has changed since.
    """
    if engine is None or not engine.holds(job.model):
        check_seals(job.model)
    if engine is None:
        from npd_ascend.rollout.engine import Engine

        engine = Engine(job)
        loaded("start")
    elif not engine.holds(job.model):
        engine.reload(job.model)
        loaded("reload")
    return engine


class Tally:
    """Feeds what workers report to one progress meter, counting each sample once, whoever made it.

    Args:
        job: the job; what is committed already counts as skipped.
        meter: makes the meter.

    Raises:
        UserError: the prompts are not there.
    """

    def __init__(self, job: RolloutJob, meter: Callable[..., Meter] = Meter):
        source = Dataset.open(job.prompts, "prompts")
        missing = set(Dataset(job.out, "rollouts", job.fingerprint).missing(source.shards))
        done = sum(r["rows"] for i, r in enumerate(source.manifest["shards"]) if i not in missing)
        paths = job.settings.paths
        self._have: dict[int, int] = {}
        self._meter = meter("rollout", source.rows * paths, "samples", done * paths)

    def __call__(self, samples: int, tokens: int, have: Mapping[int, int]) -> None:
        """Takes a report of ``generate``; samples that a dead worker left in a journal do not count for the rate."""
        new = 0
        for index, n in have.items():
            new += max(0, n - self._have.get(index, 0))
            self._have[index] = max(n, self._have.get(index, 0))
        taken_over = max(0, new - samples)
        self._meter.done += taken_over
        self._meter.skipped += taken_over
        self._meter.advance(new - taken_over, tokens)

    def close(self, complete: bool = False) -> None:
        """Reports the final count; a worker that dies between a commit and its report leaves a few uncounted."""
        if complete and self._meter.total is not None:
            self._meter.done = self._meter.total
        self._meter.close()
