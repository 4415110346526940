"""Nothing for answers of a good length, less and less for those beyond."""

from __future__ import annotations

from typing import Any

from npd_ascend.tasks.registry import Attempt, register


@register("length")
def length(attempt: Attempt, data: Any = None, *, limit: int, buffer: int) -> float:
    """0 up to ``limit - buffer`` tokens, from there a straight line to −1 at ``limit``; −1 where the answer was cut.

    DAPO (arXiv:2503.14476) eq. (13), soft overlong punishment.

    Args:
        attempt: the response.
        data: not used.
        limit: tokens from which on it costs 1.
        buffer: tokens before them, over which the cost rises.
    """
    if attempt.truncated:
        return -1.0
    over = attempt.tokens - (limit - buffer)
    return -min(1.0, max(0.0, over / max(buffer, 1)))
