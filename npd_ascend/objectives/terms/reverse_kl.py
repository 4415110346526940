"""KL(student ‖ teacher)."""

from typing import Any

from npd_ascend.objectives.registry import term


@term("reverse_kl", student_weighted=True)
def reverse_kl(teacher_logprobs: Any, student_logprobs: Any) -> Any:
    """Σ q (log q − log p), MiniLLM (arXiv:2306.08543) eq. (1), exact over the support."""
    return (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)
