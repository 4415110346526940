"""IcePop: tokens on which engine and trainer disagree too much are left out."""

from typing import Any

from npd_ascend.objectives.ratios import WATCHED, above, below, ratio
from npd_ascend.objectives.registry import term


def mask_share(label_logprobs: Any, rollout_logprobs: Any, low: float = 0.5, high: float = 5.0) -> Any:
    """1 where the token is left out."""
    r = ratio(label_logprobs, rollout_logprobs)
    return above(r, high) + below(r, low)


@term("icepop", watches=(*WATCHED, mask_share))
def icepop(
    label_logprobs: Any, rollout_logprobs: Any, advantages: Any, fixed: Any, low: float = 0.5, high: float = 5.0
) -> Any:
    """−ρ A log π with ρ held fixed, for low <= ρ <= high, else 0: the discrepancy mask of IcePop (Ling Team 2025,
    "Small leak can sink a great ship"), of which the old policy is the engine's own here."""
    r = ratio(label_logprobs, rollout_logprobs)
    keep = 1.0 - above(r, high) - below(r, low)
    return -fixed(keep * r) * advantages * label_logprobs
