"""Wall time of an arm, split by what it was spent on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

ASIDE = ("start", "compile", "evaluation", "lag", "prepare")
"""One-off or done by the study for itself: not part of what an arm's method costs."""


class Clock:
    """Books time under the innermost open heading; what is under none is ``other``.

    Attributes:
        totals: seconds of each heading.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self._stack = ["other"]
        self._since = time.monotonic()

    @contextmanager
    def on(self, heading: str) -> Iterator[None]:
        """Books what happens inside under ``heading``."""
        self._book()
        self._stack.append(heading)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def charge(self, heading: str, seconds: float) -> None:
        """Adds time that was spent elsewhere, such as on a dataset that another arm has made."""
        self.totals[heading] += seconds

    def move(self, source: str, heading: str, seconds: float) -> None:
        """Books a part of what is booked under one heading under another."""
        self._book()
        self.totals[source] -= seconds
        self.totals[heading] += seconds

    @property
    def seconds(self) -> float:
        """All time that the method costs."""
        self._book()
        return sum(v for k, v in self.totals.items() if k not in ASIDE)

    def _book(self) -> None:
        now = time.monotonic()
        self.totals[self._stack[-1]] += now - self._since
        self._since = now
