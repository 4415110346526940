"""KL(teacher ‖ student), the paper's eq. (2)."""

from typing import Any

from npd_ascend.objectives.registry import divergence


@divergence("forward_kl", student_weighted=False)
def forward_kl(logp: Any, logq: Any, parameter: Any) -> Any:
    """Σ p (log p − log q), arXiv:2605.05940 eq. (2). Teacher-weighted, so stale rollouts hurt it little."""
    return (logp.exp() * (logp - logq)).sum(-1)
