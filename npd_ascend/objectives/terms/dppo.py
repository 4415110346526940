"""DPPO: tokens whose probability has moved too far in the direction of their advantage are left out."""

from typing import Any

from npd_ascend.objectives.ratios import WATCHED, above, below, ratio
from npd_ascend.objectives.registry import term


def mask_share(label_logprobs: Any, rollout_logprobs: Any, advantages: Any, bound: float = 0.2) -> Any:
    """1 where the token is left out."""
    moved = label_logprobs.exp() - rollout_logprobs.exp()
    return above(advantages, 0.0) * above(moved, bound) + below(advantages, 0.0) * below(moved, -bound)


@term("dppo", watches=(*WATCHED, mask_share))
def dppo(label_logprobs: Any, rollout_logprobs: Any, advantages: Any, fixed: Any, bound: float = 0.2) -> Any:
    """−M ρ A, M = 0 where A > 0 and π − μ > bound, or A < 0 and π − μ < −bound: the binary total variation of DPPO
    (arXiv:2602.04879) eq. (12)."""
    keep = 1.0 - mask_share(label_logprobs, rollout_logprobs, advantages, bound)
    return -fixed(keep) * ratio(label_logprobs, rollout_logprobs) * advantages
