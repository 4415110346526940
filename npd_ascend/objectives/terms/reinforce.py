"""The plain policy gradient."""

from typing import Any

from npd_ascend.objectives.registry import term


@term("reinforce")
def reinforce(label_logprobs: Any, advantages: Any) -> Any:
    """−A log π (Williams 1992)."""
    return -advantages * label_logprobs
