"""A worker's process: it is given jobs one by one, reports events, and keeps what is costly for the next job.

Commands are JSON lines::

    {"module": "annotate", "kind": "AnnotateJob", "job": {...}}   runs ``npd_ascend.annotate.stage.run(job)``
    {"stacks": true}   prints the stacks of all threads, whatever is at work
    {"exit": true}

Events are JSON lines: those of ``progress.py`` while the job is at work, and::

    {"event": "ready", "rank", "pid"}                        the process listens
    {"event": "loaded", "text", "level", "again"}            an engine has the job's weights; ``again``: it will be
                                                             started afresh
    {"event": "done", "result"}                              what ``run`` returned
    {"event": "restart"}                                     the job needs a new process
    {"event": "error", "kind": "user"|"corrupt"|"internal", "text", ...}   and the process ends

They go over stdin and what was stdout at the start (what libraries print goes to stderr), so that a worker may be in
a container of its own; or, where msrun stands between, over a Unix socket that ``NPD_WORKER_SOCKET`` names. The end of
the line means that the owner is gone: the process ends at once, whatever it is doing. Nothing is lost by that.

A stage's module may have a class ``Kept``: it is made once and given to each ``run(job, kept)``. Started with a job's
file as the only argument (``jobfile.py``), the process does that job, and its exit code says how it went: 0 done, 2 the
user has to mend something, 3 a damaged shard, 1 a fault.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from npd_ascend import progress
from npd_ascend.config.job import Job
from npd_ascend.errors import EXIT_USER, CorruptShard, NpdError, UserError
from npd_ascend.visible import one_line
from npd_ascend.workers import failures
from npd_ascend.workers.jobfile import read_job
from npd_ascend.workers.shares import Tally
from npd_ascend.workers.system import allow_tracing, die_with_parent

SOCKET = "NPD_WORKER_SOCKET"
NAMED = "worker"
"""Before a worker's name, which lists of processes show; no option, which msrun would take for its own."""


class Restart(NpdError):
    """Raised by a stage whose job needs a process that has done nothing yet."""


class Server:
    """Does jobs one by one.

    Args:
        say: takes events.
    """

    def __init__(self, say: Callable[[dict[str, Any]], None]):
        self._say = say
        self._kept: dict[str, Any] = {}
        self._commands: queue.Queue[dict[str, Any]] = queue.Queue()

    def serve(self, commands: queue.Queue[dict[str, Any]]) -> int:
        """Works until ``exit``, a restart or an error; returns the exit code."""
        self._commands = commands
        self._say({"event": "ready", "rank": _rank(), "pid": os.getpid()})
        code = 0
        while not code and "exit" not in (command := commands.get()):
            try:
                kind = getattr(importlib.import_module(f"npd_ascend.{command['module']}.job"), command["kind"])
                result = self.run(command["module"], kind.model_validate(command["job"]))
                self._say({"event": "done", "result": result})
            except Restart:
                self._say({"event": "restart"})
                break
            except Exception as e:
                code = self._failed(e, command["module"])
        for kept in self._kept.values():
            getattr(kept, "close", lambda: None)()
        return code

    def run(self, module: str, job: Job) -> Any:
        """Does one job. Where ``Kept`` has an attribute ``following``, that is set to what gives further jobs of this
        kind that come meanwhile."""
        stage = importlib.import_module(f"npd_ascend.{module}.stage")
        if not hasattr(stage, "Kept"):
            return stage.run(job)
        if module not in self._kept:
            self._kept[module] = stage.Kept()
        kept = self._kept[module]
        if hasattr(kept, "following"):
            kept.following = lambda: self._following(type(job))
        return stage.run(job, kept)

    def _following(self, kind: type[Job]) -> Job | None:
        """The next command's job, if it is there and of this kind."""
        waiting = self._commands.queue
        if not waiting or waiting[0].get("kind") != kind.__name__:
            return None
        self._say({"event": "done", "result": None})
        return kind.model_validate(self._commands.get()["job"])

    def _failed(self, e: Exception, module: str) -> int:
        """Says why a job has failed; returns the exit code."""
        if isinstance(e, CorruptShard):
            self._say({"event": "error", "kind": "corrupt", "text": str(e), "dataset": e.dataset, "index": e.index})
            return e.exit_code
        if isinstance(e, UserError):
            self._say({"event": "error", "kind": "user", "text": str(e)})
            return EXIT_USER
        try:
            traceback.print_exception(e)
        except OSError:
            pass  # the log is on the full disk
        if text := failures.advice(e, module):
            self._say({"event": "error", "kind": "user", "text": text})
            return EXIT_USER
        self._say({"event": "error", "kind": "internal", "text": failures.cause(e)})
        return 1


def main(argv: list[str] | None = None) -> int:
    """Entry of the process; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] != NAMED:
        return _by_hand(given)
    die_with_parent()  # msrun may be between this process and its owner
    allow_tracing()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the owner's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    heard, said = _line()
    lock = threading.Lock()

    def say(event: dict[str, Any]) -> None:
        with lock:
            try:
                said.write(json.dumps(event) + "\n")
                said.flush()
            except (OSError, ValueError):
                pass  # the owner is gone, and the listener ends this process

    progress.send_to(say)
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(heard, commands), daemon=True).start()
    return Server(say).serve(commands)


def _by_hand(given: list[str]) -> int:
    """Runs the job in the file given as the only argument, for a person."""
    if len(given) != 1:
        return _tell("expected one job file, e.g. RUN/jobs/g000-select.json", EXIT_USER)
    try:
        stage, job = read_job(Path(given[0]))
    except UserError as e:
        return _tell(e, EXIT_USER)
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    said: list[dict[str, Any]] = []
    try:
        tally = Tally(job.shares()) if hasattr(job, "shares") else None
        before = progress.send_to(_Plain(tally)) if tally else None
        Server(said.append).run(stage.module, job)
        if tally:
            progress.send_to(before)
            tally.close()
        return 0
    except Exception as e:
        code = Server(said.append)._failed(e, stage.module)
        return _tell(said[-1]["text"], code)


class _Plain:
    """Sends on what a stage tells its owner when a person is the owner."""

    def __init__(self, tally: Tally):
        self._tally = tally

    def __call__(self, event: dict[str, Any]) -> None:
        before = progress.send_to(None)
        try:
            self._tally.take(0, event)
            progress.forward(event)
        finally:
            progress.send_to(before)


def _line() -> tuple[IO[str], IO[str]]:
    """Where commands come from and events go."""
    address = os.environ.get(SOCKET)
    if address:
        line = socket.socket(socket.AF_UNIX)
        line.connect(address)
        return line.makefile("r"), line.makefile("w")
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return sys.stdin, said


def _listen(heard: IO[str], commands: queue.Queue[dict[str, Any]]) -> None:
    for line in heard:
        command = json.loads(line)
        if "stacks" in command:
            faulthandler.dump_traceback(all_threads=True)
        else:
            commands.put(command)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # the engine's own processes too
    os._exit(1)


def _rank() -> int:
    """Of this process under msrun; -1: msrun's scheduler, 0: a process by itself."""
    return -1 if os.environ.get("MS_ROLE") == "MS_SCHED" else int(os.environ.get("RANK_ID", "0"))


def _tell(what: object, code: int) -> int:
    try:
        print(f"error: {one_line(str(what))}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the log is on the full disk, too
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads behind whose clean-up may hang or crash; everything of ours is on disk by now.
    os._exit(code)
