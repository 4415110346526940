"""Follows metrics.jsonl and hands on what is new, one feed a monitor, each in a thread of its own.

A feed notes what it hands on before it does so: a run that is resumed, and does again some steps behind its last
checkpoint, sends no point twice; a kill may cost the points of two seconds. A monitor that fails or hangs costs a
warning and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from npd_ascend.config import load_config
from npd_ascend.monitors.registry import MONITORS, Monitor, Point, Subject
from npd_ascend.progress import message
from npd_ascend.store.atomic import write_bytes
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import TERM, WATCHED, plain, read_metrics

Row = dict[str, Any]
_EVERY_S = 2.0
_CLOSE_S = 30.0
_TAGS = {
    "train": {
        "loss": "loss/total",
        "ce": "loss/ce",
        "kd": "loss/kd",
        "grad_norm": "train/grad_norm",
        "lr": "train/lr",
        "progress": "train/epoch",
    },
    "lag": {"forward": "lag/forward", "reverse": "lag/reverse"},
    "evaluate": {"accuracy": "accuracy"},
}


def point(row: Row) -> Point | None:
    """What a row of metrics.jsonl says; None when there is no curve in it."""
    tags = _TAGS.get(row["kind"], {}) | (
        {k: f"loss/{k.removeprefix(TERM)}" for k in row if k.startswith(TERM)}
        | {k: f"policy/{k.removeprefix(WATCHED)}" for k in row if k.startswith(WATCHED)}
        if row["kind"] == "train"
        else {}
    )
    values = {tag: float(row[key]) for key, tag in tags.items() if isinstance(row.get(key), int | float)}
    seconds = row.get("seconds")
    if row["kind"] == "train" and seconds and row.get("tokens"):
        values["train/tokens_per_second"] = row["tokens"] / seconds
    if not values or not isinstance(row.get("step"), int):
        return None
    return Point(row["step"], float(row.get("time", 0.0)), values)


class Sent:
    """What a monitor has been given: by kind the generation and step up to which, of evaluations their names.

    Args:
        path: file that keeps it between two starts of a run.
        fresh: forget what it says; the monitor gets a new id.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path = path
        try:
            known = json.loads(path.read_text())
            self.attempt, self._upto, self._names = int(known["attempt"]), dict(known["upto"]), list(known["names"])
        except (OSError, ValueError, KeyError, TypeError):
            self.attempt, self._upto, self._names = 0, {}, []
        if fresh and (self._upto or self._names):
            self.attempt, self._upto, self._names = self.attempt + 1, {}, []

    def new(self, rows: Iterable[Row]) -> Iterator[Point]:
        """Points of the rows that were not sent; from now on they count as sent."""
        for row in rows:
            found = point(row)
            if found is None:
                continue
            if row["kind"] == "evaluate":
                if row.get("name") not in self._names:
                    self._names.append(row.get("name"))
                    yield found
                continue
            at = [int(row.get("generation") or 0), found.step]
            if at > self._upto.get(row["kind"], [-1, -1]):
                self._upto[row["kind"]] = at
                yield found

    def save(self) -> None:
        """Writes it to its file."""
        text = json.dumps({"attempt": self.attempt, "upto": self._upto, "names": self._names})
        write_bytes(self.path, text.encode())


class Feed:
    """Hands a run's curves on to one monitor.

    Args:
        name: as in ``report.monitors``.
        run_dir: the run.
        config: its configuration as plain values.
        fresh: send all again, as another run: what was sent belongs to other settings.

    Raises:
        UserError: there is no monitor of that name.
    """

    def __init__(self, name: str, run_dir: Path, config: dict[str, Any], fresh: bool = False):
        self.name, self._config, self._fresh = name, config, fresh
        self._opens, self._project = MONITORS.parse(name)
        self._root = run_dir.resolve()
        self._folder = self._root / "monitors" / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        self._stop = threading.Event()
        self._seen: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._follow, name=f"monitor {name}", daemon=True)

    def start(self) -> None:
        """Begins to follow, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Hands on the rest. A monitor that does not end in half a minute is left alone."""
        self._stop.set()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            message(f"monitor {self.name} does not end: its last points may be missing", level="warning")

    def _follow(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sent = Sent(self._folder / "sent.json", self._fresh)
            name = f"{self._root.name}-{sent.attempt}" if sent.attempt else self._root.name
            key = hashlib.sha256(f"{self._root}\0{sent.attempt}".encode()).hexdigest()[:20]
            monitor = self._opens(Subject(name, key, self._folder, self._config), self._project)
            while not self._stop.wait(_EVERY_S):
                self._hand_on(monitor, sent)
            self._hand_on(monitor, sent)
            monitor.close()
        except BaseException as e:  # whatever it is: a run does not stop for those who watch
            message(f"monitor {self.name} fails and is left out: {type(e).__name__}: {e}", level="warning")

    def _hand_on(self, monitor: Monitor, sent: Sent) -> None:
        path = self._root / "metrics.jsonl"
        try:
            state = path.stat()
        except FileNotFoundError:
            return
        if (seen := (state.st_ino, state.st_size)) == self._seen:
            return
        self._seen = seen
        if points := list(sent.new(plain(row) for row in read_metrics(path))):
            sent.save()
            monitor.log(points)


def hand_on(name: str, run: RunDir) -> None:
    """Sends what a monitor has not yet got of a run that is not at work.

    Raises:
        UserError: there is no monitor of that name, or the run is at work.
    """
    run.lock()
    try:
        feed = Feed(name, run.root, load_config(run.config).model_dump(mode="json"))
        feed.start()
        feed.stop()
    finally:
        run.unlock()
