"""What a stage tells the outside while it works, and how that is read: an append-only file of JSON lines.

The executor names the file in ``NPD_PROGRESS`` and follows it; a stage that is run by hand writes plain lines
to stderr. A file, unlike a pipe, survives launchers such as msrun and Ray between the two ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npd_ascend.visible import one_line

ENV = "NPD_PROGRESS"
STARTED = "NPD_STARTED"
"""Variable with the time at which the executor started this process."""
_EVERY_S = 0.25
_PLAIN_EVERY_S = 5.0


def emit(event: str, **fields: Any) -> None:
    """Appends one event: ``{"event": ..., "time": ..., **fields}``. Events in use: see the callers below."""
    path = os.environ.get(ENV)
    if path:
        line = json.dumps({"event": event, "time": time.time(), **fields}) + "\n"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            return  # a full disk: the stage's own writes find it out and say it
        try:
            os.write(fd, line.encode())
        except OSError:
            pass
        finally:
            os.close(fd)
    elif event == "message":
        print(one_line(str(fields["text"])), file=sys.stderr, flush=True)


def message(text: str, level: str = "info") -> None:
    """One line for the person who watches. ``level`` is ``info`` or ``warning``."""
    emit("message", text=text, level=level)


def spent(stage: str, what: str, seconds: float) -> None:
    """Seconds that a stage's process took before its work on data: ``what`` is ``start`` or ``compile``."""
    emit("spent", stage=stage, what=what, seconds=round(seconds, 3))


def started(stage: str) -> None:
    """Says that the engine is imported; the seconds since the executor started this process are its start-up."""
    begun = os.environ.get(STARTED)
    if begun:
        spent(stage, "start", time.time() - float(begun))


class Meter:
    """Counts finished units of one stage, with tokens, and reports them a few times a second.

    Args:
        stage: name shown, e.g. ``annotate teacher``.
        total: units to be done in all, or None if unknown.
        unit: what a unit is, e.g. ``samples``.
        done: units already finished by an earlier run (they do not count for the rate).
        silent: nothing is reported; for processes that do the same work as the one that reports.
    """

    def __init__(self, stage: str, total: int | None, unit: str = "samples", done: int = 0, silent: bool = False):
        self._silent = silent
        self.stage, self.total, self.unit = stage, total, unit
        self.done = self.skipped = done
        self.tokens = 0
        self.notes: dict[str, Any] = {}
        self._start = self._last = time.monotonic()
        self._plain_last = self._start
        self._emit("begin")

    def advance(self, n: int = 1, tokens: int = 0, **notes: Any) -> None:
        """Adds ``n`` units and ``tokens`` tokens; ``notes`` (e.g. ``loss=0.3``) are shown beside the bar."""
        self.done += n
        self.tokens += tokens
        self.notes.update(notes)
        now = time.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._emit("progress")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time within out of the seconds that are reported."""
        begin = time.monotonic()
        yield
        self._start += time.monotonic() - begin

    def close(self) -> None:
        """Reports the final count."""
        self._emit("end")

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.close()

    def _emit(self, event: str) -> None:
        if self._silent:
            return
        seconds = time.monotonic() - self._start
        fields = dict(
            stage=self.stage,
            done=self.done,
            skipped=self.skipped,
            total=self.total,
            unit=self.unit,
            tokens=self.tokens,
            seconds=round(seconds, 3),
            notes=self.notes,
        )
        emit(event, **fields)
        now = time.monotonic()
        if not os.environ.get(ENV) and (event != "progress" or now - self._plain_last > _PLAIN_EVERY_S):
            self._plain_last = now
            of = f"/{self.total}" if self.total is not None else ""
            rate = f", {self.tokens / seconds:,.0f} tokens/s" if self.tokens and seconds > 0 else ""
            line = one_line(f"{self.stage}: {event} {self.done}{of} {self.unit}{rate}")
            print(line, file=sys.stderr, flush=True)


class ProgressTail:
    """Reads what is new in a growing progress file.

    Args:
        path: file of JSON lines as written by ``npd_ascend.progress``; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._at = 0
        self._rest = b""

    def poll(self) -> list[dict[str, Any]]:
        """Events that were completed since the last call, in order.

        A line still being written waits for the next call, a damaged line is passed over, and a file that
        became shorter (a restarted stage) is read from its start.
        """
        try:
            with open(self.path, "rb") as f:
                if f.seek(0, 2) < self._at:
                    self._at, self._rest = 0, b""
                f.seek(self._at)
                data = f.read()
        except FileNotFoundError:
            return []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                events.append(event)
        return events
