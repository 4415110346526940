"""The response has a given form."""

from __future__ import annotations

import re
from typing import Any

from npd_ascend.tasks.registry import Attempt, register
from npd_ascend.tasks.worker import Workers

_SECONDS = 2.0
_WORKERS = Workers("npd_ascend.tasks.rewards.format:found", "builtins:object", "its processes do not start")


@register("format")
def format(attempt: Attempt, data: Any = None, *, pattern: str = r"\\boxed\{.+\}") -> bool:
    """The regular expression occurs in the response, of which "." takes lines as well.

    One that takes too long with a response has not been found: patterns run in a process that can be killed.

    Args:
        attempt: the response.
        data: not used.
        pattern: what must occur; a last box by default.
    """
    return _WORKERS.ask(_SECONDS, pattern=pattern, text=attempt.response) is True


def found(pattern: str, text: str) -> bool:
    """In a worker: whether the pattern occurs."""
    return re.search(pattern, text, re.DOTALL) is not None
