"""Generalised Jensen-Shannon divergence of GKD."""

from typing import Any

from npd_ascend.objectives.mixture import log_mixture
from npd_ascend.objectives.registry import term


@term("jsd", student_weighted=True, parameter=0.5)
def jsd(teacher_logprobs: Any, student_logprobs: Any, parameter: Any, log: Any) -> Any:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q; GKD (arXiv:2306.13649) eq. (1)."""
    logp, logq = teacher_logprobs, student_logprobs
    logm = log_mixture(logp + log(parameter), logq + log(1 - parameter), log)
    forward = (logp.exp() * (logp - logm)).sum(-1)
    backward = (logq.exp() * (logq - logm)).sum(-1)
    beta = parameter[:, 0]
    return beta * forward + (1 - beta) * backward
