"""Refreshes when the measured lag reaches ε, at most ``sync.refreshes`` times."""

from __future__ import annotations

from npd_ascend.errors import UserError
from npd_ascend.sync.registry import Moment, Refresh, SyncPolicy, register


@register("kl")
class KL(SyncPolicy):
    """The paper's near-policy bound as a rule: KL(student ‖ generator) of the probe set reaches ``sync.epsilon``."""

    condition = "if the lag reaches sync.epsilon"
    lag_advice = "A smaller sync.epsilon, sync.lag_every or sync.lead keeps it below."

    def check(self) -> None:
        if self.settings.refreshes and not self.settings.lag_every:
            raise UserError(
                "sync.policy: kl measures the lag every sync.lag_every steps, which is 0: it would never "
                "refresh; set sync.lag_every above 0"
            )

    @property
    def refreshes(self) -> int:
        return self.settings.refreshes

    @property
    def lag_bound(self) -> float:
        return self.settings.epsilon

    def refresh(self, moment: Moment) -> Refresh | None:
        if moment.lag is None or moment.lag < self.settings.epsilon:
            return None
        return Refresh("lag", f"lag {moment.lag:.4f} has reached {self.settings.epsilon:g}")
