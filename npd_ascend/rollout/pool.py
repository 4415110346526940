"""Rollout workers as seen from their owner: a session whose workers are vLLM engines. No engine is imported here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.progress import Meter
from npd_ascend.rollout import live
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.live import LiveBatch
from npd_ascend.rollout.questions import Asking, Question, Reply
from npd_ascend.workers.local import Events, LocalWorker, Worker
from npd_ascend.workers.session import Session, Work


class RolloutPool(Session):
    """Long-lived engines that share the shards of one job at a time.

    A job with another model of the same shape reloads weights in place, one of another shape gets new processes.

    Args:
        python: interpreter of the rollout environment.
        workers: how many; on Ascend one for each device or tensor-parallel group.
        logs: folder for ``rollout-<i>.log``, what each worker prints.
        target: ``cpu`` or ``ascend``.
        tensor_parallel: devices a worker (Ascend).
        env: added to the environment of the workers.
        cores: CPU cores that the workers are tied to; None: all.
        meter: makes the progress meter of a job.
    """

    def __init__(
        self,
        python: Path,
        workers: int,
        logs: Path,
        *,
        target: str = "cpu",
        tensor_parallel: int = 1,
        env: Mapping[str, str] | None = None,
        cores: Sequence[int] | None = None,
        meter: Callable[..., Meter] = Meter,
    ):
        super().__init__("rollout", self._engine, workers, meter)
        self.python, self.logs = Path(python), Path(logs)
        self._env = {**os.environ, **(env or {})}
        self._target, self._tp, self._cores = target, tensor_parallel, cores

    def run(self, job: RolloutJob) -> None:
        """Makes the rollouts of a job; returns at once when they are complete.

        What a worker that dies or hangs had finished is in the journals, and the rest is generated again.

        Raises:
            UserError, CorruptShard, PoolClosed: see ``Session.do``.
        """
        what = job.shares()
        self.do(Work("rollout", job, "rollout", job.settings, what))
        if not what.complete():
            raise UserError(f"{job.out}: the workers ended with shards still missing; run the same command again")

    def answer(self, job: RolloutJob, prompts: Sequence[Array], seeds: Sequence[int | None]) -> LiveBatch:
        """Answers one batch of prompts in memory, on the first worker; nothing is stored.

        Args:
            job: model, settings and lengths; its datasets are not looked at.
            prompts: token ids of each prompt.
            seeds: of each answer; None: greedy.

        Raises:
            UserError, PoolClosed: see ``Session.do``; and a prompt that does not fit.
        """
        (result,) = self.do(Work("rollout", live.ask(job, prompts, seeds), "rollout", job.settings))
        return live.read(result)

    def ask(
        self,
        job: RolloutJob,
        tokenizer: Path,
        questions: Sequence[Question],
        take: Callable[[int, Reply], None],
        trust_remote_code: bool = False,
    ) -> None:
        """Has questions answered in memory by all workers; nothing is stored.

        Args:
            job: model, settings and length; its datasets are not looked at.
            tokenizer: folder of the tokenizer that reads stop texts.
            questions: all of them.
            take: called here with the number of a question and its reply, as they come.
            trust_remote_code: of the tokenizer.

        Raises:
            UserError, PoolClosed: see ``Session.do``; and a question that does not fit.
        """
        asking = Asking(job, tokenizer, trust_remote_code, questions, take, self.size)
        self.do(asking, min(self.size, len(questions)))

    def __enter__(self) -> RolloutPool:
        return self

    def _engine(self, index: int, events: Events) -> Worker:
        log = self.logs / f"rollout-{index}.log"
        command = [str(self.python), "-m", "npd_ascend.workers.process"]
        return LocalWorker(index, command, self._environment(index), log, events, self._cores)

    def _environment(self, index: int) -> dict[str, str]:
        env = {**self._env, "PYTHONUNBUFFERED": "1"}
        if self._target == "ascend":
            visible = env.get("ASCEND_RT_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(self.size * self._tp)]
            mine = devices[index * self._tp : (index + 1) * self._tp]
            if len(mine) < self._tp:
                raise UserError(
                    f"rollout.workers {self.size} x tensor_parallel {self._tp} need "
                    f"{self.size * self._tp} devices, {len(devices)} are visible"
                )
            env["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(mine)
        else:
            cores = len(self._cores or os.sched_getaffinity(0))
            threads = str(max(1, cores // self.size))
            env["OMP_NUM_THREADS"] = threads if self._cores else env.get("OMP_NUM_THREADS", threads)
            env.setdefault("OMP_WAIT_POLICY", "passive")
        return env
