"""A pull back to the snapshot that wrote the answers."""

from typing import Any

from npd_ascend.objectives.ratios import WATCHED, log_ratio
from npd_ascend.objectives.registry import term


@term("drift", watches=WATCHED)
def drift(label_logprobs: Any, rollout_logprobs: Any) -> Any:
    """(log π / μ)², Kimi K2.5 (arXiv:2602.02276); usual weight 0.001."""
    return log_ratio(label_logprobs, rollout_logprobs) ** 2
