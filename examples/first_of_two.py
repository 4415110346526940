"""A sync policy: refreshes when the lag reaches ε, and in any case when the answers have grown old."""

from __future__ import annotations

from npd_ascend.sync.policies.kl import KL
from npd_ascend.sync.registry import Moment, Refresh, register


@register("first_of_two")
class FirstOfTwo(KL):
    """As ``kl``; but no generation is trained for longer than ``static`` would train it."""

    condition = "when the lag reaches sync.epsilon or the answers are old"

    def refresh(self, moment: Moment) -> Refresh | None:
        age = moment.progress - moment.start
        if age >= self.epochs / (self.refreshes + 1):
            return Refresh("age", f"the answers have been used for {age:.2f} epochs")
        return super().refresh(moment)
