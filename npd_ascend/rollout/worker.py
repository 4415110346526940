"""A long-lived rollout process: commands in, answers out, the engine kept warm in between.

Commands are JSON lines on stdin::

    {"cmd": "run", "job": {...}}        a RolloutJob
    {"cmd": "answer", "job": {...}, "prompts": [[ids]], "seeds": [...]}   one batch, answered in memory (``live.py``)
    {"cmd": "ask", "job": {...}, "tokenizer", "trust_remote_code", "questions": [[number, {...}]]}   a block of
                                                             ``questions.py``; the next may come before it is done
    {"cmd": "exit"}

Answers are JSON lines on what was stdout at the start; what libraries print goes to stderr::

    {"event": "ready"}                                       the process listens
    {"event": "loaded", "how": "start"|"reload", "seconds", "check"}  the engine has the job's weights; ``check`` is a
                                                             ``check.Verdict`` or null, and after a failed one comes
                                                             another event of this kind, of a new engine
    {"event": "progress", "samples", "tokens", "have"}       counts as ``generate`` reports them; also the heartbeat
    {"event": "done", "complete"}                            its share of the job is done
    {"event": "answers", "answers", "seconds"}               of ``answer``
    {"event": "replies", "replies"}                          of ``ask``: [number, reply] of those that are answered
    {"event": "restart"}                                     the job needs another engine: start a new process
    {"event": "error", "kind": "user"|"corrupt"|"internal", "text", ...}   and the process ends

The end of stdin means that the parent is gone: the process ends at once, whatever it is doing. Nothing is lost by
that, finished samples are in the journals.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.rollout import live, questions
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.stage import hold, work
from npd_ascend.store.dataset import Dataset

if TYPE_CHECKING:
    from npd_ascend.rollout.check import Verdict
    from npd_ascend.rollout.engine import Engine


class Worker:
    """Serves commands one by one.

    Args:
        answers: where answers are written.
    """

    def __init__(self, answers: IO[str]):
        self._answers = answers
        self._engine: Engine | None = None
        self._asked = time.monotonic()
        self._commands: queue.Queue[dict[str, Any]] = queue.Queue()

    def serve(self, commands: queue.Queue[dict[str, Any]]) -> None:
        """Works until ``exit``, a restart or an error."""
        self._commands = commands
        self._say("ready")
        while (command := commands.get())["cmd"] != "exit":
            self._asked = time.monotonic()
            try:
                if not self._obey(command):
                    self._say("restart")
                    break
            except CorruptShard as e:
                self._say("error", kind="corrupt", text=str(e), dataset=e.dataset, index=e.index)
                break
            except UserError as e:
                self._say("error", kind="user", text=str(e))
                break
            except Exception as e:
                traceback.print_exc()
                self._say("error", kind="internal", text=f"{type(e).__name__}: {e}".splitlines()[0])
                break
        if self._engine is not None:
            self._engine.close()

    def _obey(self, command: dict[str, Any]) -> bool:
        job = RolloutJob.model_validate(command["job"])
        if self._engine is not None and job.settings.source != "reference" and not self._engine.suits(job):
            return False
        if command["cmd"] == "answer":
            self._engine = hold(job, self._engine, self._loaded, live.CHECK_EVERY)
            self._say("answers", **live.answer(job, self._engine, command))
            return True
        if command["cmd"] == "ask":
            self._engine = hold(job, self._engine, self._loaded)
            self._engine.read_stops(load_tokenizer(Path(command["tokenizer"]), command["trust_remote_code"]))
            questions.answer(self._engine, self._blocks(command), lambda **told: self._say("replies", **told))
            return True
        self._engine = work(job, self._engine, lambda **counts: self._say("progress", **counts), self._loaded)
        self._say("done", complete=Dataset(job.out, "rollouts", job.fingerprint).complete)
        return True

    def _blocks(self, first: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """A block of questions and those that have come since; None where there is none now."""
        yield first
        while True:
            waiting = self._commands.queue
            yield self._commands.get() if waiting and waiting[0]["cmd"] == "ask" else None

    def _loaded(self, how: str, verdict: Verdict | None) -> None:
        now = time.monotonic()
        self._say("loaded", how=how, seconds=round(now - self._asked, 3), check=verdict and asdict(verdict))
        self._asked = now

    def _say(self, event: str, **fields: Any) -> None:
        self._answers.write(json.dumps({"event": event, **fields}) + "\n")
        self._answers.flush()


def main() -> None:
    """Entry of ``python -m npd_ascend.rollout.worker``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, commands), daemon=True).start()
    Worker(answers).serve(commands)
    sys.stderr.flush()
    os._exit(0)  # interpreter shutdown of torch and vLLM threads may hang; nothing is left to save


def _listen(stdin: IO[str], commands: queue.Queue[dict[str, Any]]) -> None:
    for line in stdin:
        commands.put(json.loads(line))
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # vLLM's own processes too
    os._exit(1)


if __name__ == "__main__":
    main()
