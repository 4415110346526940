"""The loop that keeps an engine full from the first shard to the last."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from npd_ascend.rollout.engine import Engine
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.requests import Answer, Request
from npd_ascend.rollout.shards import Board, Shard

_BEAT_S = 0.5
_SAVE_S = 0.05


def generate(job: RolloutJob, engine: Engine, report: Callable[..., None]) -> None:
    """Answers all prompts of a job that no other worker answers.

    The next shard is claimed when fewer than 1.5 times ``max_num_seqs`` requests are in flight, so the engine never
    runs empty at a border, and a finished sample is in its shard's journal within a twentieth of a second.

    Args:
        job: the job; the engine must hold its model.
        engine: the engine.
        report: called about twice a second while the engine steps, with the arguments of ``progress.have``; a shard
            is at hand while it is in the making, and once more when it is finished.

    Raises:
        UserError: a prompt cannot be answered with these settings or this model.
        CorruptShard: a prompts shard is damaged.
    """
    # The disk is waited for in a thread: an engine of a small model would lose a tenth of its time to it.
    board = Board(job)
    with ThreadPoolExecutor(1, thread_name_prefix="journal") as writer:
        run = _Run(job, engine, board, report, writer)
        run.fill()
        while run.flying:
            run.step()
            run.fill()
        run.save()
        run.settle(wait=True)
        run.tell()
        board.finish()


class _Run:
    def __init__(
        self, job: RolloutJob, engine: Engine, board: Board, report: Callable[..., None], writer: ThreadPoolExecutor
    ):
        self.job, self.engine, self.board, self.report = job, engine, board, report
        self._writer = writer
        self._writing: deque[tuple[Future[None], Shard, list[tuple[Request, Answer]], bool]] = deque()
        self.flying: dict[str, Request] = {}
        self._shards: dict[int, Shard] = {}
        self._queue: list[Request] = []  # of the shard claimed last, next request at the end
        self._more = True
        self._unsaved: dict[int, list[tuple[Request, Answer]]] = {}
        self._clock = self._beat = self._saved = time.monotonic()
        self._samples = self._tokens = self._worked = 0
        self._have: dict[int, int] = {}

    def fill(self) -> None:
        """Submits requests, claiming shards as needed, until the engine has enough to do for a while.

        In bursts, because a fast engine's step loses more to a submission in between than the submission takes.
        """
        seats = self.job.settings.max_num_seqs
        if 2 * len(self.flying) >= 3 * seats:
            return
        while len(self.flying) < 2 * seats and (self._queue or self._more):
            if self._queue:
                request = self._queue.pop()
                name = f"{request.shard}-{request.row}"
                self.engine.submit(name, request, self.engine.params(self.job, request))
                self.flying[name] = request
            else:
                self._more = self._claim()

    def step(self) -> None:
        """One step of the engine; what it finished is saved, at the latest, by the first step after 50 ms."""
        self._worked += min(len(self.flying), self.job.settings.max_num_seqs)  # a token each
        for name, answer in self.engine.step():
            request = self.flying.pop(name)
            self._unsaved.setdefault(request.shard, []).append((request, answer))
        self._share_time()
        if self._clock - self._saved >= _SAVE_S:
            self.save()
        if self._clock - self._beat >= _BEAT_S:
            self.tell()

    def save(self) -> None:
        """Has finished samples journaled, and the shards that they complete committed."""
        self.settle()
        for index, answers in self._unsaved.items():
            shard = self._shards[index]
            shard.take(answers)
            job = self._writer.submit(_write, shard, answers, shard.finished)
            self._writing.append((job, shard, answers, shard.finished))
        self._unsaved = {}
        self._saved = self._clock

    def settle(self, wait: bool = False) -> None:
        """Counts what has been written since; raises what went wrong there."""
        while self._writing and (wait or self._writing[0][0].done()):
            job, shard, answers, committed = self._writing.popleft()
            job.result()
            self._have[shard.index] = self._have.get(shard.index, 0) + len(answers)
            self._samples += len(answers)
            self._tokens += sum(len(a.ids) for _, a in answers)
            if committed:
                self._leave(shard)

    def tell(self) -> None:
        """Reports what was done since the last report."""
        self.report(samples=self._samples, tokens=self._tokens, have=dict(self._have), worked=self._worked)
        self._have = {i: n for i, n in self._have.items() if i in self._shards}
        self._beat, self._samples, self._tokens, self._worked = self._clock, 0, 0, 0

    def _claim(self) -> bool:
        taken = self.board.take()
        if taken is None:
            return False
        shard = Shard(self.job, self.board.dataset, *taken)
        self._have[shard.index] = shard.rows - shard.left
        self._shards[shard.index] = shard
        self._queue = shard.pending[::-1]
        if shard.finished:
            shard.commit()
            self._leave(shard)
        return True

    def _leave(self, shard: Shard) -> None:
        self.board.release(shard.index)
        del self._shards[shard.index]

    def _share_time(self) -> None:
        """Charges the time since the last step to the shards in flight, by their unfinished samples."""
        now = time.monotonic()
        left = max(1, sum(s.left for s in self._shards.values()))
        for shard in self._shards.values():
            shard.seconds += (now - self._clock) * shard.left / left
        self._clock = now


def _write(shard: Shard, answers: list[tuple[Request, Answer]], finished: bool) -> None:
    shard.journal(answers)
    if finished:
        shard.commit()
