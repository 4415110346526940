"""Truncated importance sampling."""

from typing import Any

from npd_ascend.objectives.ratios import WATCHED, above, ratio
from npd_ascend.objectives.registry import term


def clip_share(label_logprobs: Any, rollout_logprobs: Any, cap: float = 2.0) -> Any:
    """1 where the ratio is cut."""
    return above(ratio(label_logprobs, rollout_logprobs), cap)


@term("tis", watches=(*WATCHED, clip_share))
def tis(label_logprobs: Any, rollout_logprobs: Any, advantages: Any, fixed: Any, cap: float = 2.0) -> Any:
    """−min(ρ, cap) A log π with the weight held fixed (Ionides 2008; against the mismatch of engine and trainer)."""
    r = ratio(label_logprobs, rollout_logprobs)
    return -fixed(r.clip(0.0, cap)) * advantages * label_logprobs
