"""Ctrl-C on the command line: one line and exit code 130, whenever it comes.

While modules are imported and settings are read, the process ends where it is: nothing has been begun, and an exception
inside an import may leave half a module or a traceback of a library behind. A command that starts processes asks for
``unwind`` first; from there on Ctrl-C is an exception, so that they are ended in order. The executor of a run has a
handler of its own, which SIGTERM reaches too.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 128 + signal.SIGINT


class Interruption(BaseException):
    """Somebody wants the program to end; no ``Exception``, so that nothing on the way up takes it for an error."""


class Interrupted(Interruption):
    """Ctrl-C, on its way up through what has to be cleaned up; no KeyboardInterrupt, which libraries catch."""


def end_at_once() -> None:
    """From here on Ctrl-C ends the process."""
    signal.signal(signal.SIGINT, _end)


def unwind() -> None:
    """From here on Ctrl-C raises ``Interrupted``, once: a second one does not disturb the clean-up."""
    signal.signal(signal.SIGINT, _raise)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"stopped\n")
    os._exit(EXIT_INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Interrupted
