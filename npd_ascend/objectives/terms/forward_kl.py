"""KL(teacher ‖ student), the paper's eq. (2)."""

from typing import Any

from npd_ascend.objectives.registry import term


@term("forward_kl")
def forward_kl(teacher_logprobs: Any, student_logprobs: Any) -> Any:
    """Σ p (log p − log q), arXiv:2605.05940 eq. (2). Teacher-weighted, so stale rollouts hurt it little."""
    return (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).sum(-1)
