"""KL(student ‖ teacher)."""

from typing import Any

from npd_ascend.objectives.registry import divergence


@divergence("reverse_kl", student_weighted=True)
def reverse_kl(logp: Any, logq: Any, parameter: Any) -> Any:
    """Σ q (log q − log p), MiniLLM (arXiv:2306.08543) eq. (1), exact over the support."""
    return (logq.exp() * (logq - logp)).sum(-1)
