"""Results of a measuring process: one JSON line each, written as it comes, so that a crash costs what comes after."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROUNDS = 3


class Lines:
    """The results of this process.

    Args:
        path: file to append to; None: they do not count, as those of all ranks but one.
    """

    def __init__(self, path: Path | None):
        self._path = path

    def take(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Does a measurement and writes it down, or the error with which it ended."""
        try:
            line = work()
        except Exception as e:  # of whatever kind: the report says it, and the next measurement is taken
            line = {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"[:400]}
        if self._path is not None:
            with open(self._path, "a") as f:
                f.write(json.dumps({"name": name, **line}) + "\n")


def mean_seconds(work: Callable[[], object]) -> float:
    """Of a call; one more comes first and is not counted. As many on every rank, because they meet in each."""
    work()
    begun = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    return (time.perf_counter() - begun) / _ROUNDS


def read(path: Path) -> list[dict[str, Any]]:
    """All lines so far; a torn last one does not count."""
    out = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return out
