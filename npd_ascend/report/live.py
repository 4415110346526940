"""The one live view of a run: a bar for each stage at work on a terminal, plain timed lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from npd_ascend.visible import one_line

_PLAIN_EVERY_S = 10.0
# Rates look back so far: long enough to be steady, short enough to forget compilation and warm-up.
_WINDOW_S = 30.0


class StageState:
    """What is known of one stage at work, and what follows from it."""

    def __init__(self, name: str):
        self.name = name
        self.done = self.skipped = self.tokens = 0
        self.total: int | None = None
        self.unit = "samples"
        self.seconds = 0.0
        self.notes: dict[str, Any] = {}
        self.worked = 0
        self.expected: int | None = None
        self._past: deque[tuple[float, int, int, int]] = deque()

    def update(self, event: dict[str, Any]) -> None:
        """Takes over the fields of a begin, progress or end event."""
        for key in ("done", "skipped", "tokens", "total", "unit", "seconds", "notes", "worked", "expected"):
            if key in event:
                setattr(self, key, event[key])
        if event["event"] == "begin":
            self._past.clear()
        self._past.append((self.seconds, self.done, self.tokens, self.worked))
        while len(self._past) > 2 and self._past[1][0] < self.seconds - _WINDOW_S:
            self._past.popleft()

    def rates(self, whole: bool = False) -> tuple[float, float]:
        """Units and tokens a second, lately or over the ``whole`` stage; earlier runs do not count."""
        at, done, tokens, _ = (0.0, self.skipped, 0, 0) if whole or not self._past else self._past[0]
        span = self.seconds - at
        return ((self.done - done) / span, (self.tokens - tokens) / span) if span > 0 else (0.0, 0.0)

    def eta(self) -> float | None:
        """Seconds to go at the present rate, by tokens where it is known how many to expect; None when unknown."""
        if self.expected is not None and self._past:
            at, *_, worked = self._past[0]
            rate = (self.worked - worked) / (self.seconds - at) if self.seconds > at else 0.0
            return max(0, self.expected - self.worked) / rate if rate > 0 else None
        rate = self.rates()[0] or self.rates(whole=True)[0]
        return (self.total - self.done) / rate if self.total is not None and rate > 0 else None

    def count(self) -> str:
        """``120/512 samples``."""
        of = f"/{self.total:,}" if self.total is not None else ""
        return f"{self.done:,}{of} {self.unit}"

    def speed(self, whole: bool = False) -> str:
        """``40.1 samples/s, 2,310 tokens/s``; empty when nothing has moved."""
        units, tokens = self.rates(whole)
        parts = [f"{_number(units)} {self.unit}/s"] if units > 0 else []
        return ", ".join(parts + ([f"{_number(tokens)} tokens/s"] if tokens > 0 else []))

    def remarks(self) -> str:
        """``loss 0.312, lag 0.04``."""
        return ", ".join(f"{k} {_number(v) if isinstance(v, int | float) else v}" for k, v in self.notes.items())


class LiveView:
    """Shows progress events of all stages that are at work.

    Calls may come from several threads.

    Args:
        file: where to write; stdout when empty.
        terminal: whether bars may be drawn; by default, whether ``file`` is a terminal.
        every: seconds between two plain lines of one stage.
    """

    def __init__(self, file: IO[str] | None = None, terminal: bool | None = None, every: float = _PLAIN_EVERY_S):
        file = file or sys.stdout
        self.terminal = file.isatty() if terminal is None else terminal
        self.stages: dict[str, StageState] = {}
        self._file, self._every = file, every
        self._lock = threading.RLock()
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}
        self._progress: Progress | None = None
        if self.terminal:
            console = Console(file=file, force_terminal=True, highlight=False)
            self._progress = Progress(
                SpinnerColumn(finished_text="✓"),
                _Part(lambda s: Text(s.name, style="bold")),
                BarColumn(bar_width=24),
                _Part(lambda s: s.count()),
                _Part(lambda s: Text(s.speed(), style="cyan")),
                _Part(_eta_text),
                _Part(lambda s: Text(s.remarks(), style="dim"), shrinks=True),
                console=console,
                refresh_per_second=4,
                transient=True,
                expand=False,
            )

    def __enter__(self) -> LiveView:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begins to draw."""
        if self._progress:
            self._progress.start()

    def stop(self) -> None:
        """Ends drawing and gives the terminal back; bars left open disappear. May be called twice."""
        with self._lock:
            if self._progress:
                self._progress.stop()
            for name in list(self.stages):
                self._forget(name)

    def handle(self, event: dict[str, Any]) -> None:
        """Shows one event: ``begin``, ``progress``, ``end``, ``message``, ``error``; no other matters."""
        kind = event.get("event")
        with self._lock:
            if kind in ("begin", "progress", "end"):
                self._stage(str(event.get("stage", "")), event)
            elif kind == "message":
                text = str(event.get("text", ""))
                if event.get("level") == "warning":
                    self._say(f"warning: {text}", "yellow")
                else:
                    self._say(text)
            elif kind == "error":
                stage = str(event.get("stage") or "")
                self._forget(stage)
                self._say(f"error{f' in {stage}' if stage else ''}: {event.get('text', '')}", "bold red")

    def _stage(self, name: str, event: dict[str, Any]) -> None:
        state = self.stages.setdefault(name, StageState(name))
        state.update(event)
        kind = event["event"]
        if kind == "end":
            self._say(
                _join(
                    f"{name}: done, {state.count()} in {_duration(state.seconds)}",
                    state.speed(whole=True),
                    state.remarks(),
                ),
                "green",
            )
            self._forget(name)
        elif self._progress:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, state=state)
            self._progress.update(self._tasks[name], completed=state.done, total=state.total)
        elif kind == "begin" or time.monotonic() - self._shown.get(name, -1e9) >= self._every:
            self._shown[name] = time.monotonic()
            if kind == "begin":
                self._say(f"{name}: begins, {state.count()}")
            else:
                eta = state.eta()
                percent = f" ({100 * state.done / state.total:.0f} %)" if state.total else ""
                self._say(
                    _join(
                        f"{name}: {state.count()}{percent}",
                        state.speed(),
                        f"{_duration(eta)} to go" if eta is not None else "",
                        state.remarks(),
                    )
                )

    def _forget(self, name: str) -> None:
        self.stages.pop(name, None)
        self._shown.pop(name, None)
        task = self._tasks.pop(name, None)
        if self._progress and task is not None:
            self._progress.remove_task(task)

    def _say(self, line: str, style: str = "") -> None:
        line = one_line(line)  # text of models and errors must not steer the terminal
        clock = time.strftime("%H:%M:%S")
        if self._progress:
            text = Text.assemble((clock, "dim"), "  ", (line, style))
            self._progress.console.print(text, soft_wrap=True)
        else:
            print(f"{clock}  {line}", file=self._file, flush=True)


class _Part(ProgressColumn):
    """A column that is a function of the stage's state."""

    def __init__(self, show: Callable[[StageState], Text | str], shrinks: bool = False):
        # The loss may be cut on a narrow terminal, the count may not.
        super().__init__(Column(no_wrap=True, overflow="ellipsis", ratio=1 if shrinks else None))
        self._show = show

    def render(self, task: Task) -> Text:
        shown = self._show(task.fields["state"])
        if isinstance(shown, Text):
            return Text(one_line(shown.plain), style=shown.style)
        return Text(one_line(shown))


def _eta_text(state: StageState) -> Text:
    eta = state.eta()
    return Text(f"{_duration(eta)} to go" if eta is not None else _duration(state.seconds), style="magenta")


def _join(*parts: str) -> str:
    return ", ".join(p for p in parts if p)


def _number(x: float) -> str:
    """Three digits that tell: 2,310 or 40.1 or 0.0031."""
    return f"{x:,.0f}" if abs(x) >= 100 or x % 1 == 0 else f"{x:.3g}"


def _duration(seconds: float) -> str:
    """``12 s``, ``3:05 min``, ``2:03:05 h``."""
    s = int(round(seconds))
    if s < 60:
        return f"{seconds:.1f} s" if s < 10 else f"{s} s"
    m, s = divmod(s, 60)
    return f"{m}:{s:02d} min" if m < 60 else f"{m // 60}:{m % 60:02d}:{s:02d} h"
