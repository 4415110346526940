"""Stage entry: one process answers a whole job, or its share of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from npd_ascend.config.jobs import RolloutJob
from npd_ascend.progress import Meter
from npd_ascend.rollout.reference import answer_from_references
from npd_ascend.rollout.shards import Board
from npd_ascend.store.dataset import Dataset

if TYPE_CHECKING:
    from npd_ascend.rollout.engine import Engine


def run(job: RolloutJob) -> None:
    """Makes the ``rollouts`` of a job in this process, resuming where an earlier one stopped.

    With ``settings.source == "reference"`` no engine is needed and any interpreter will do; otherwise vLLM's.

    Raises:
        UserError: prompts, model or settings do not fit together.
        CorruptShard: a prompts shard is damaged.
    """
    with job_meter(job) as meter:
        engine = work(job, None, lambda **counts: count(meter, **counts))
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
    """
    with Board(job) as board:
        if not board.open:
            board.finish()
            return engine
    if job.settings.source == "reference":
        answer_from_references(job, report)
        return engine
    from npd_ascend.rollout.generate import generate

    if engine is None:
        from npd_ascend.rollout.engine import Engine

        engine = Engine(job)
        loaded("start")
    elif not engine.holds(job.model):
        engine.reload(job.model)
        loaded("reload")
    generate(job, engine, report)
    return engine


def job_meter(job: RolloutJob, meter: Callable[..., Meter] = Meter) -> Meter:
    """A progress meter that knows the job's size and what is done already.

    Raises:
        UserError: the prompts are not there.
    """
    source = Dataset.open(job.prompts, "prompts")
    dataset = Dataset(job.out, "rollouts", job.fingerprint)
    missing = set(dataset.missing(source.shards))
    done = sum(r["rows"] for i, r in enumerate(source.manifest["shards"]) if i not in missing)
    paths = job.settings.paths
    return meter("rollout", source.rows * paths, "samples", done * paths)


def count(meter: Meter, samples: int, tokens: int, replayed: int = 0) -> None:
    """Adds a worker's counts to a meter; what came from a journal does not count for the rate."""
    meter.done += replayed
    meter.skipped += replayed
    meter.advance(samples, tokens)
