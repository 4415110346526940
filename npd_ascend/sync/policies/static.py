"""Refreshes at fixed points: given, or spread evenly over the run (the paper: one, in the middle)."""

from __future__ import annotations

from npd_ascend.errors import UserError
from npd_ascend.sync.registry import SyncPolicy, register


@register("static")
class Static(SyncPolicy):
    """``sync.at_epochs``, or ``sync.refreshes`` points that cut the run into equal parts."""

    lag_advice = "More refreshes (sync.refreshes) or sync.policy: kl keep it below."

    def check(self) -> None:
        if self.points and self.points[-1] >= self.epochs:
            raise UserError(f"sync.at_epochs has {self.points[-1]}, not before the end at train.epochs = {self.epochs}")

    @property
    def points(self) -> list[float]:
        """Where generations end that another one follows, in epochs since the start of the run."""
        s = self.settings
        if s.at_epochs is not None:
            return sorted(s.at_epochs)
        return [self.epochs * i / (s.refreshes + 1) for i in range(1, s.refreshes + 1)]

    @property
    def refreshes(self) -> int:
        return len(self.points)

    def end(self, generation: int) -> float:
        return self.points[generation]
