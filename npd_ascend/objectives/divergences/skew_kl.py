"""Skew KL of DistiLLM."""

from typing import Any

from npd_ascend.models.elementwise import log
from npd_ascend.objectives.mixture import log_mixture
from npd_ascend.objectives.registry import divergence


@divergence("skew_kl", student_weighted=False, parameter=0.1)
def skew_kl(logp: Any, logq: Any, parameter: Any) -> Any:
    """KL(p ‖ α p + (1 − α) q), DistiLLM (arXiv:2402.03898) eq. (3)."""
    logm = log_mixture(logp + log(parameter), logq + log(1 - parameter))
    return (logp.exp() * (logp - logm)).sum(-1)
