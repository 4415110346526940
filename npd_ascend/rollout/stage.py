"""Stage entry: one process answers a whole job, or its share of it."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from npd_ascend.errors import UserError
from npd_ascend.progress import Meter
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.reference import answer_from_references
from npd_ascend.rollout.shards import Board
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import check_seals

if TYPE_CHECKING:
    from npd_ascend.rollout.check import Verdict
    from npd_ascend.rollout.engine import Engine

    Loaded = Callable[[str, Verdict | None], None]

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


def work(
    job: RolloutJob, engine: Engine | None, report: Callable[..., None], loaded: Loaded = lambda how, verdict: None
) -> Engine | None:
    """Does a worker's share of a job with a living engine, or with a new one where there is none.

    Args:
        job: the job.
        engine: engine of an earlier job that ``suits`` this one; reloaded when the model differs.
        report: called with the counts of ``generate`` as they grow.
        loaded: see ``hold``.

    Returns:
        The engine, for the next job; None if none was needed.

    Raises:
        UserError, CorruptShard: see ``run``.
    """
    try:
        return _work(job, engine, report, loaded)
    except OSError as e:
        if e.errno in _NO_ROOM:
            raise UserError(
                f"{e.filename or job.out}: {e.strerror}; make room there or use another run.dir, then run "
                "the same command again"
            ) from e
        raise


def _work(job: RolloutJob, engine: Engine | None, report: Callable[..., None], loaded: Loaded) -> Engine | None:
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


def hold(job: RolloutJob, engine: Engine | None, loaded: Loaded, every: int = 1) -> Engine:
    """Returns an engine that answers with a job's weights: the given one, reloaded if needed, or a new one.

    After a reload the engine's answer to a fixed request is checked (``check.py``). An engine that does not answer with
    its new weights is closed and replaced by a new one.

    Args:
        job: the job.
        engine: one that ``suits`` it, or None.
        loaded: called with ``start`` or ``reload`` when weights were taken, and what the check found, if there was one.
        every: checks the first reload and then every n-th.

    Raises:
        CorruptSnapshot: a run wrote the checkpoint, and it has changed since.
        UserError: a new engine does not answer with the weights either.
    """
    if engine is not None and engine.holds(job.model):
        return engine
    check_seals(job.model)
    if engine is None:
        return _start(job, loaded)
    engine.reload(job.model)
    verdict = engine.check() if (engine.reloads - 1) % every == 0 else None
    loaded("reload", verdict)
    if verdict is None or verdict.passed:
        return engine
    engine.close()  # its memory is needed for the next
    return _start(job, loaded, verdict.limit)


def _start(job: RolloutJob, loaded: Loaded, limit: float = math.inf) -> Engine:
    """A new engine, whose log-probs may differ from a plain forward pass by ``limit``."""
    from npd_ascend.rollout.engine import Engine

    engine = Engine(job)
    verdict = engine.check()
    if verdict.difference > limit:
        helps = (
            "compare vLLM's version with what npd doctor expects"
            if engine.eager
            else "set rollout.enforce_eager: true (no captured graphs) and run the same command again"
        )
        engine.close()
        raise UserError(
            f"vLLM does not answer with the weights of {job.model}: after a reload and in a new engine, "
            f"log-probs of a fixed request are off by {verdict.difference:.2g} nats (at most {limit:.2g}); "
            f"{helps}"
        )
    loaded("start", verdict)
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
