"""What a stage tells the outside while it works: events, small dictionaries of JSON.

A worker sends them to whoever gave it the job (``workers/process.py``), the executor takes them all in and writes them
to ``logs/progress.jsonl`` for those who come later. Where nobody takes them, plain lines go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from npd_ascend.visible import one_line

STARTED = "NPD_STARTED"
"""Variable with the time at which this process was started."""
_EVERY_S = 0.25
_PLAIN_EVERY_S = 5.0
Sink = Callable[[dict[str, Any]], None]
_sink: Sink | None = None


def send_to(sink: Sink | None) -> Sink | None:
    """From here on events go there; None: to stderr, as plain lines. Returns who took them before."""
    global _sink
    before, _sink = _sink, sink
    return before


def emit(event: str, **fields: Any) -> None:
    """Sends one event: ``{"event": ..., "time": ..., **fields}``. Events in use: see the callers below."""
    forward({"event": event, "time": time.time(), **fields})


def forward(event: dict[str, Any]) -> None:
    """Sends an event that is complete already, such as a worker's."""
    if _sink is not None:
        _sink(event)
    elif event["event"] == "message":
        print(one_line(str(event["text"])), file=sys.stderr, flush=True)


def message(text: str, level: str = "info") -> None:
    """One line for the person who watches. ``level`` is ``info`` or ``warning``."""
    emit("message", text=text, level=level)


def spent(stage: str, what: str, seconds: float) -> None:
    """Further seconds that a stage took beside its work on data: ``what`` is ``start``, ``load`` or ``compile``."""
    emit("spent", stage=stage, what=what, seconds=round(seconds, 3))


def started(stage: str) -> None:
    """Says that the engine is imported; the seconds since this process was started are its start-up, told once."""
    begun = os.environ.pop(STARTED, None)
    if begun:
        spent(stage, "start", time.time() - float(begun))


def have(have: Mapping[int, int], samples: int, tokens: int, worked: int = 0) -> None:
    """What one of several workers has done of the shards that they share.

    Args:
        have: samples that are now done of each shard at hand, those of earlier workers too.
        samples: how many this worker has done since the last call.
        tokens: and their tokens.
        worked: tokens worked on since the last call, those of unfinished samples too; 0: not known.
    """
    emit("have", have=dict(have), samples=samples, tokens=tokens, worked=worked)


class Meter:
    """Counts finished units of one stage, with tokens, and reports them a few times a second.

    Attributes:
        idle: seconds since the start that do not count, because nothing could be done in them.
        worked, expected: tokens worked on so far and in all, where the units say little about what is left.

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
        self.idle = 0.0
        self.worked = 0
        self.expected: int | None = None
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
        seconds = max(0.0, time.monotonic() - self._start - self.idle)
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
        if self.expected is not None:
            fields |= dict(worked=self.worked, expected=self.expected)
        emit(event, **fields)
        now = time.monotonic()
        if _sink is None and (event != "progress" or now - self._plain_last > _PLAIN_EVERY_S):
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
