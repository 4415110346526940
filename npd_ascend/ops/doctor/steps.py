"""What a long test is at, for the person who waits: a line when a step begins, one every ten seconds while it goes on,
and one for each result."""

from __future__ import annotations

import threading
import time

from npd_ascend.ops.doctor.finding import Finding
from npd_ascend.progress import message

_EVERY_S = 10.0


class Steps:
    """The steps of one test, as a context.

    Args:
        total: how many there will be; 0: not known.
    """

    def __init__(self, total: int = 0):
        self._total, self._count, self._what = total, 0, ""
        self._begun = self._since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="steps", daemon=True)

    def __enter__(self) -> Steps:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self, what: str) -> None:
        """A step begins; the one before it has ended."""
        self._count += 1
        self._what, self._since = what, time.monotonic()
        of = f"/{self._total}" if self._total >= self._count else ""
        self._say(f"[{self._count}{of}] {what} ...")

    def found(self, finding: Finding) -> None:
        """A result is there."""
        self._say(f"  {finding.level}: {finding.what}")

    def _go_on(self) -> None:
        while not self._stop.wait(_EVERY_S):
            if self._what:
                self._say(f"  still at {self._what}, {time.monotonic() - self._since:.0f} s so far")

    def _say(self, text: str) -> None:
        seconds = round(time.monotonic() - self._begun)
        message(f"{seconds // 60}:{seconds % 60:02d}  {text}")
