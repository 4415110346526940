"""A term of the loss: the squared Hellinger distance of student and teacher."""

from __future__ import annotations

from typing import Any

from npd_ascend.objectives.registry import term


@term("hellinger", student_weighted=True)
def hellinger(teacher_logprobs: Any, student_logprobs: Any) -> Any:
    """1 − Σ √(p q) over the stored support; bounded by 1, whatever the teacher excludes."""
    return 1 - ((teacher_logprobs + student_logprobs) / 2).exp().sum(-1)
