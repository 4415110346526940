"""Skew reverse KL of DistiLLM."""

from typing import Any

from npd_ascend.objectives.mixture import log_mixture
from npd_ascend.objectives.registry import term


@term("skew_reverse_kl", student_weighted=True, parameter=0.1)
def skew_reverse_kl(teacher_logprobs: Any, student_logprobs: Any, parameter: Any, log: Any) -> Any:
    """KL(q ‖ (1 − α) p + α q), DistiLLM (arXiv:2402.03898) section 3.1."""
    logp, logq = teacher_logprobs, student_logprobs
    logm = log_mixture(logp + log(1 - parameter), logq + log(parameter), log)
    return (logq.exp() * (logq - logm)).sum(-1)
