"""Skew KL of DistiLLM."""

from typing import Any

from npd_ascend.objectives.mixture import log_mixture
from npd_ascend.objectives.registry import term


@term("skew_kl", parameter=0.1)
def skew_kl(teacher_logprobs: Any, student_logprobs: Any, parameter: Any, log: Any) -> Any:
    """KL(p ‖ α p + (1 − α) q), DistiLLM (arXiv:2402.03898) eq. (3)."""
    logp, logq = teacher_logprobs, student_logprobs
    logm = log_mixture(logp + log(parameter), logq + log(1 - parameter), log)
    return (logp.exp() * (logp - logm)).sum(-1)
