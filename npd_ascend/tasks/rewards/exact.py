"""The same text."""

from __future__ import annotations

from typing import Any

from npd_ascend.tasks.registry import Attempt, register


@register("exact", needs_answer=True)
def exact(attempt: Attempt, data: Any = None) -> bool:
    """The same text, white space at both ends aside."""
    return attempt.answer is not None and attempt.response.strip() == attempt.answer.strip()
