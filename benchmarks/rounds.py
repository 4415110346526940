"""Engines in processes of their own, asked in turn, so that each round of one stands beside a round of the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_SIDE = "NPD_BENCHMARK_SIDE"
_answers = None
if os.environ.pop(_SIDE, None):  # before any engine is imported: they print to stdout while they are
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
THREADS = str(len(os.sched_getaffinity(0)))


def interpreter(name: str) -> str:
    """``mindspore`` or ``rollout``: that environment's interpreter, as the package finds it."""
    from npd_ascend.environments import Environments

    return str(getattr(Environments.find(), name))


class Side:
    """A process that serves commands.

    Args:
        python: interpreter.
        script: file that calls ``serve``.
        args: its arguments.
        cores: pinned to these; None: all.
    """

    def __init__(self, python: str, script: str, *args: object, cores: set[int] | None = None):
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(len(cores)) if cores else THREADS,
            "OMP_WAIT_POLICY": "passive",
            "VLLM_LOGGING_LEVEL": "ERROR",
            _SIDE: "1",
        }
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        self._process = subprocess.Popen(
            [python, script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
            preexec_fn=pin,
        )

    def ask(self, command: str) -> Any:
        """What the process answers."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended at {command!r}; see its words above")
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def serve(commands: dict[str, Callable[[], Any]]) -> None:
    """Answers commands from stdin with one line of JSON each; what libraries print goes to stderr."""
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=_answers, flush=True)
    os._exit(0)
