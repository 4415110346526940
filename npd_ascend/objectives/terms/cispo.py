"""CISPO: the weight is clipped, and no token loses its gradient."""

from typing import Any

from npd_ascend.objectives.ratios import WATCHED, above, below, ratio
from npd_ascend.objectives.registry import term


def clip_share(label_logprobs: Any, rollout_logprobs: Any, low: float = 1.0, high: float = 4.0) -> Any:
    """1 where the weight is clipped."""
    r = ratio(label_logprobs, rollout_logprobs)
    return above(r, 1.0 + high) + below(r, 1.0 - low)


@term("cispo", watches=(*WATCHED, clip_share))
def cispo(
    label_logprobs: Any, rollout_logprobs: Any, advantages: Any, fixed: Any, low: float = 1.0, high: float = 4.0
) -> Any:
    """−clip(ρ, 1 − low, 1 + high) A log π with the weight held fixed, MiniMax-M1 (arXiv:2506.13585) eq. (4); low = 1 is
    no lower bound."""
    r = ratio(label_logprobs, rollout_logprobs)
    return -fixed(r.clip(1.0 - low, 1.0 + high)) * advantages * label_logprobs
