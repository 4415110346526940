"""An answer checker: the right answer occurs somewhere in the response. A plain function will do."""

from __future__ import annotations

from typing import Any

from npd_ascend.tasks.registry import Attempt


def contains(attempt: Attempt, data: Any) -> bool:
    """``data`` is the content of ``evaluate.checker_data``, None without one: words, any of which is right as well."""
    right = [attempt.answer or "", *(data or [])]
    return any(word.strip().lower() in attempt.response.lower() for word in right if word.strip())
