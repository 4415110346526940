"""Processes that judge one thing at a time, and die where it takes too long or too much.

Libraries for mathematics hang on ``9^{9^{9^9}}`` in C code, which no thread can be taken out of. So they work in a
process of their own, under an alarm that the kernel keeps, and in whichever environment has the library:
``python -m npd_ascend.tasks.worker MODULE:FUNCTION MODULE:USABLE`` answers JSON lines.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.registry import load

_GIB = 1 << 30
MEMORY = 4 * _GIB
"""Address space of a worker."""


class Workers:
    """Runs one function in processes; ask it from as many threads as should judge at once.

    Args:
        function: ``module:function``, called with what is asked as keywords; its result must be JSON.
        usable: ``module:function``, called once before: raises in an environment that lacks what the other needs. This
            interpreter is tried first, then those of the environments.
        help: what to do where all of them lack it.
    """

    def __init__(self, function: str, usable: str, help: str):
        self._function, self._usable, self._help = function, usable, help
        self._idle: list[subprocess.Popen[str]] = []
        self._python: Path | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, seconds: float, **arguments: Any) -> Any:
        """What the function answers; None where it took longer than ``seconds``, raised, or ended its process.

        Raises:
            UserError: no environment has the library.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or self._start()
        found = _exchange(process, {"seconds": seconds, "arguments": arguments})
        if found is None:
            _end(process)
            return None
        with self._lock:
            self._idle.append(process)
        return found.get("value")

    def check(self) -> None:
        """Whether some environment has the library.

        Raises:
            UserError: none has.
        """
        process = self._start()
        with self._lock:
            self._idle.append(process)

    def close(self) -> None:
        """Ends all processes."""
        with self._lock:
            processes, self._idle = self._idle, []
        for process in processes:
            _end(process)

    def _start(self) -> subprocess.Popen[str]:
        lacking = []
        for python in [self._python] if self._python else _interpreters():
            with suppress(OSError):
                process = subprocess.Popen(
                    [str(python), "-m", "npd_ascend.tasks.worker", self._function, self._usable],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                first = _read(process) or {}
                if first.get("ready"):
                    self._python = python
                    return process
                lacking.append(f"{python}: {first.get('lacks') or 'its process ends'}")
                _end(process)
        raise UserError(
            f"{self._function} works in no environment ({'; '.join(lacking) or 'there is none'}): {self._help}"
        )


def _interpreters() -> list[Path]:
    found = Environments.find()
    return list(dict.fromkeys((Path(sys.executable), found.mindspore, found.rollout)))


def _exchange(process: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any] | None:
    assert process.stdin
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    except OSError:
        return None
    return _read(process)


def _read(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """The next line; None when the process has ended, as its alarm sees to."""
    assert process.stdout
    try:
        found = json.loads(process.stdout.readline())
        return found if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream:
            with suppress(OSError):
                stream.close()
    process.wait()


def main(path: str, usable: str) -> None:
    """Answers until nobody asks any more; see ``Workers`` for the arguments."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        load(usable, "worker")()
        function = load(path, "worker")
    except Exception as e:  # whatever an import does
        lines = (line.strip(" *") for line in str(e).splitlines())
        return say(lacks=next(filter(None, lines), type(e).__name__))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    say(ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        # Its default action ends the process, whatever code it is in.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(question["seconds"], 0.01))
        try:
            value = function(**question["arguments"])
        except Exception:  # whatever a library does with what a model wrote
            value = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(value=None if isinstance(value, float) and not math.isfinite(value) else value)


if __name__ == "__main__":
    main(*sys.argv[1:])
