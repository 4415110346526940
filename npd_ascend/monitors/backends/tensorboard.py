"""Event files in ``<run>/monitors/tensorboard``, for ``tensorboard --logdir``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npd_ascend.monitors.registry import Monitor, Point, Subject, register


class Events:
    """Scalars in an event file.

    Args:
        folder: gets one event file a start of the run.
    """

    def __init__(self, folder: str):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer: Any = EventFileWriter(folder)

    def log(self, points: Sequence[Point]) -> None:
        """Writes them and flushes."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for p in points:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in p.values.items()]
            self._writer.add_event(Event(wall_time=p.time, step=p.step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


@register("tensorboard")
def open(subject: Subject, project: str) -> Monitor:
    """Needs the package ``tensorboard``; the project is a folder to write below, the run's own when empty."""
    return Events(f"{project}/{subject.name}" if project else str(subject.folder / f"events-{subject.id}"))
