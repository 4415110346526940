"""Cross-entropy of the labels."""

from typing import Any

from npd_ascend.objectives.registry import term


@term("cross_entropy")
def cross_entropy(label_logprobs: Any) -> Any:
    """−log q(label), the first term of arXiv:2605.05940 eq. (1)."""
    return -label_logprobs
