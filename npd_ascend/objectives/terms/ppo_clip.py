"""Clipped ratio of PPO and GRPO, with an upper bound of its own."""

from typing import Any

from npd_ascend.objectives.ratios import WATCHED, above, below, ratio
from npd_ascend.objectives.registry import term


def clip_share(
    label_logprobs: Any, rollout_logprobs: Any, advantages: Any, low: float = 0.2, high: float = 0.28
) -> Any:
    """1 where the clip takes the gradient."""
    r = ratio(label_logprobs, rollout_logprobs)
    return above(advantages, 0.0) * above(r, 1.0 + high) + below(advantages, 0.0) * below(r, 1.0 - low)


@term("ppo_clip", watches=(*WATCHED, clip_share))
def ppo_clip(label_logprobs: Any, rollout_logprobs: Any, advantages: Any, low: float = 0.2, high: float = 0.28) -> Any:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A), PPO (arXiv:1707.06347) eq. (7); DAPO's bounds (arXiv:2503.14476)."""
    r = ratio(label_logprobs, rollout_logprobs)
    return -(r * advantages).minimum(r.clip(1.0 - low, 1.0 + high) * advantages)
