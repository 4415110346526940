"""Stage entry: one process answers a whole job, or its share of it."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from npd_ascend import progress
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.rollout import live, questions
from npd_ascend.rollout.job import AskJob, LiveJob, RolloutJob
from npd_ascend.rollout.reference import answer_from_references
from npd_ascend.rollout.shards import Board
from npd_ascend.store.identity import check_seals
from npd_ascend.workers.process import Restart

if TYPE_CHECKING:
    from npd_ascend.rollout.check import Verdict
    from npd_ascend.rollout.engine import Engine

    Loaded = Callable[[str, Verdict | None], None]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOLCK)


class Kept:
    """The engine of a worker, for its next job."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.following: Callable[[], AskJob | None] = lambda: None
        self.load_seconds, self.started = 0.0, False
        self._asked = time.monotonic()

    def suits(self, job: RolloutJob) -> None:
        """Sees to it that an engine, if there is one, can take a job.

        Raises:
            Restart: it cannot, and an engine leaves memory behind in its process.
        """
        self.load_seconds, self.started, self._asked = 0.0, False, time.monotonic()
        if self.engine is not None and job.settings.source != "reference" and not self.engine.suits(job):
            raise Restart(f"{job.model}: not for this engine")

    def loaded(self, how: str, verdict: Verdict | None) -> None:
        """Books the time that an engine took to hold its weights, and says what the check of its answers found."""
        now = time.monotonic()
        seconds, self._asked = now - self._asked, now
        self.load_seconds, self.started = self.load_seconds + seconds, self.started or how == "start"
        progress.spent("rollout", "start" if how == "start" else "load", seconds)
        text = {"start": "engine started", "reload": "weights reloaded"}[how]
        text = f"{text} in {seconds:.1f} s" + (f", {verdict}" if verdict else "")
        passed = verdict is None or verdict.passed
        if not passed and how == "reload":
            text += (
                ": it does not answer with the new weights and is started afresh; where captured graphs are "
                "the cause, rollout.enforce_eager: true avoids that"
            )
        elif not passed:
            text += ": more than rounding explains; npd doctor --selftest compares further"
        progress.emit("loaded", text=text, level="info" if passed else "warning", again=not passed and how == "reload")

    def quietly(self, how: str, verdict: Verdict | None) -> None:
        """The same, saying only what went wrong."""
        if verdict is not None and not verdict.passed:
            return self.loaded(how, verdict)
        now = time.monotonic()
        self.load_seconds, self._asked = self.load_seconds + now - self._asked, now
        self.started = self.started or how == "start"

    def close(self) -> None:
        """Ends the engine."""
        if self.engine is not None:
            self.engine.close()


def run(job: RolloutJob | LiveJob | AskJob, kept: Kept | None = None) -> dict[str, Any] | None:
    """Makes the ``rollouts`` of a job in this process, resuming where an earlier one stopped; or answers one batch,
    or questions.

    With ``settings.source == "reference"`` no engine is needed and any interpreter will do; otherwise vLLM's.

    Args:
        job: the job.
        kept: engine of an earlier job; None: one is started, and ended afterwards.

    Returns:
        Of a batch, what ``live.read`` reads.

    Raises:
        UserError: prompts, model or settings do not fit together.
        CorruptShard: a prompts shard is damaged.
        Restart: ``kept`` is not for this job.
    """
    mine = kept or Kept()
    found = None
    if isinstance(job, LiveJob):
        mine.suits(job.job)
        mine.engine = hold(job.job, mine.engine, mine.quietly, live.CHECK_EVERY)
        found = live.answer(job, mine.engine)
        found |= {"load_seconds": mine.load_seconds, "started": mine.started}
    elif isinstance(job, AskJob):
        mine.suits(job.job)
        mine.engine = hold(job.job, mine.engine, mine.loaded)
        mine.engine.read_stops(load_tokenizer(job.tokenizer, job.trust_remote_code))
        questions.answer(job, mine.engine, mine.following)
    else:
        mine.suits(job)
        mine.engine = work(job, mine.engine, progress.have, mine.loaded)
    if kept is None:
        mine.close()
    return found


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
    board = Board(job)
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
