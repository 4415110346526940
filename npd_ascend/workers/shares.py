"""A job whose shards several workers share: how much there is, and what they have done of it together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npd_ascend.progress import Meter


@dataclass(frozen=True)
class Shares:
    """What there is to share.

    Attributes:
        name: under which progress is shown.
        rows: samples of each shard.
        folder: where it is noted who makes which.
        missing: numbers of the shards that are not made.
        complete: whether the job has been done, to its last file.
        longest: tokens that a sample may come to, where only their number says how much work it is; None: samples say
            it well enough.
    """

    name: str
    rows: Sequence[int]
    folder: Path
    missing: Callable[[], set[int]]
    complete: Callable[[], bool]
    longest: int | None = None


class Tally:
    """Feeds what workers report to one progress meter, counting each sample once, whoever made it.

    Args:
        shares: of the job; what is made already counts as skipped.
        meter: makes the meter.
    """

    def __init__(self, shares: Shares, meter: Callable[..., Meter] = Meter):
        missing = shares.missing()
        done = sum(n for i, n in enumerate(shares.rows) if i not in missing)
        self._have: dict[int, int] = {}
        self._idle: dict[int, float] = {}
        self._longest = shares.longest
        self._meter = meter(shares.name, sum(shares.rows), "samples", done)

    def __call__(self, samples: int, tokens: int, have: Mapping[int, int], worked: int = 0) -> None:
        """Takes a report (``progress.have``); what a dead worker left in a journal does not count for the rate."""
        new = 0
        for index, n in have.items():
            new += max(0, n - self._have.get(index, 0))
            self._have[index] = max(n, self._have.get(index, 0))
        taken_over = max(0, new - samples)
        meter = self._meter
        meter.done += taken_over
        meter.skipped += taken_over
        self._expect(new - taken_over, worked)
        meter.advance(new - taken_over, tokens)

    def take(self, worker: int, event: dict[str, Any]) -> None:
        """Takes an event of a worker: what it has done, or seconds in which it could do nothing."""
        if event["event"] == "have":
            have = {int(i): n for i, n in event["have"].items()}
            self(event["samples"], event["tokens"], have, event["worked"])
        elif event["event"] == "spent":
            self._idle[worker] = self._idle.get(worker, 0.0) + event["seconds"]
            self._meter.idle = min(self._idle.values())  # while one of them works, time counts

    def close(self, complete: bool = False) -> None:
        """Reports the final count; a worker that dies between a commit and its report leaves a few uncounted."""
        if complete and self._meter.total is not None:
            self._meter.done = self._meter.total
        self._meter.close()

    def _expect(self, samples: int, worked: int) -> None:
        """How many tokens there will be. Finished answers are the short ones at first; tokens of all answers by the
        number of finished ones estimate the mean length without that bias where ends come at a constant rate."""
        meter = self._meter
        meter.worked += worked
        finished = meter.done - meter.skipped + samples
        if self._longest is None or not meter.worked or meter.total is None:
            return
        mean = min(self._longest, meter.worked / finished) if finished else self._longest
        meter.expected = round(mean * (meter.total - meter.skipped))
