"""KL(student ‖ teacher) from the sampled tokens alone."""

from typing import Any

from npd_ascend.objectives.ratios import log_ratio
from npd_ascend.objectives.registry import term


@term("kl_sampled")
def kl_sampled(label_logprobs: Any, teacher_label_logprobs: Any) -> Any:
    """p / π − 1 − log p / π, the k3 estimate of GRPO (arXiv:2402.03300) eq. (4). The reference is whatever
    ``models.teacher`` is: name the start there for a KL to the start."""
    gap = log_ratio(teacher_label_logprobs, label_logprobs)
    return gap.exp() - gap - 1.0
