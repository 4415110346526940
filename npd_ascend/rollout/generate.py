"""The loop that keeps an engine full from the first shard to the last."""

from __future__ import annotations

import time
from collections.abc import Callable

from npd_ascend.config.jobs import RolloutJob
from npd_ascend.rollout.engine import Engine
from npd_ascend.rollout.requests import Answer, Request
from npd_ascend.rollout.shards import Board, Shard

_BEAT_S = 0.5


def generate(job: RolloutJob, engine: Engine, report: Callable[..., None]) -> None:
    """Answers all prompts of a job that no other worker answers.

    The next shard is claimed when fewer than twice ``max_num_seqs`` requests are in flight, so the engine never
    runs empty at a border, and a finished sample goes to its shard's journal in the same step.

    Args:
        job: the job; the engine must hold its model.
        engine: the engine.
        report: called about twice a second while the engine steps: ``tokens=`` and ``samples=`` generated since the
            last call, ``have=`` samples that now stand in each shard touched since (an earlier worker's too).

    Raises:
        UserError: a prompt cannot be answered with these settings or this model.
        CorruptShard: a prompts shard is damaged.
    """
    with Board(job) as board:
        run = _Run(job, engine, board, report)
        run.fill()
        while run.flying:
            run.step()
            run.fill()
        run.tell()
        board.finish()


class _Run:
    def __init__(self, job: RolloutJob, engine: Engine, board: Board, report: Callable[..., None]):
        self.job, self.engine, self.board, self.report = job, engine, board, report
        self.flying: dict[str, Request] = {}
        self._shards: dict[int, Shard] = {}
        self._queue: list[Request] = []  # of the shard claimed last, next request at the end
        self._more = True
        self._clock = self._beat = time.monotonic()
        self._samples = self._tokens = 0
        self._have: dict[int, int] = {}

    def fill(self) -> None:
        """Submits requests, claiming shards as needed, until the engine has enough to do."""
        while len(self.flying) < 2 * self.job.settings.max_num_seqs and (self._queue or self._more):
            if self._queue:
                request = self._queue.pop()
                name = f"{request.shard}-{request.row}"
                self.engine.submit(name, request, self.engine.params(self.job, request))
                self.flying[name] = request
            else:
                self._more = self._claim()

    def step(self) -> None:
        """One step of the engine, and the journal of what it finished."""
        finished = [(self.flying.pop(name), answer) for name, answer in self.engine.step()]
        self._share_time()
        by_shard: dict[int, list[tuple[Request, Answer]]] = {}
        for request, answer in finished:
            by_shard.setdefault(request.shard, []).append((request, answer))
            self._tokens += len(answer.ids)
        self._samples += len(finished)
        for index, answers in by_shard.items():
            shard = self._shards[index]
            shard.add(answers)
            self._have[index] = shard.rows - shard.left
            self._commit_if_finished(shard)
        if self._clock - self._beat >= _BEAT_S:
            self.tell()

    def tell(self) -> None:
        """Reports what was done since the last report."""
        self.report(samples=self._samples, tokens=self._tokens, have=self._have)
        self._beat, self._samples, self._tokens, self._have = self._clock, 0, 0, {}

    def _claim(self) -> bool:
        taken = self.board.take()
        if taken is None:
            return False
        shard = Shard(self.job, self.board.dataset, *taken, self.engine.vocab_size)
        self._have[shard.index] = shard.rows - shard.left
        self._shards[shard.index] = shard
        self._queue = shard.pending[::-1]
        self._commit_if_finished(shard)
        return True

    def _commit_if_finished(self, shard: Shard) -> None:
        if shard.finished:
            shard.commit()
            self.board.release(shard.index)
            del self._shards[shard.index]

    def _share_time(self) -> None:
        """Charges the time since the last step to the shards in flight, by their unfinished samples."""
        now = time.monotonic()
        left = sum(s.left for s in self._shards.values())
        for shard in self._shards.values():
            shard.seconds += (now - self._clock) * shard.left / left
        self._clock = now
