"""The letter of a multiple choice."""

from __future__ import annotations

import re
from typing import Any

from npd_ascend.tasks.registry import Attempt, register
from npd_ascend.tasks.rewards.number import boxed

_SAID = re.compile(r"(?:(?i:answer)|答案|选)[^A-Za-z]{0,12}(?:is|为|是)?[^A-Za-z]{0,8}([A-Z])(?![A-Za-z])")
_ALONE = re.compile(r"(?<![A-Za-z])([A-Z])(?![A-Za-z'’])")
_LINE = re.compile(r"[^A-Za-z]*([A-Z])(?:[.):：、,].*)?")
"""A line that begins with its letter, as choices do."""


@register("choice", needs_answer=True)
def choice(attempt: Attempt, data: Any = None) -> bool:
    """The same letter: in the last ``\\boxed{}``, after the last "answer is", or the only one that stands alone."""
    return attempt.answer is not None and letter(attempt.response) == attempt.answer.strip().upper()


def letter(text: str) -> str | None:
    """The letter that a response chooses, or None."""
    inside = boxed(text)
    if inside is not None:
        found = _ALONE.findall(re.sub(r"\\(?:text|mathrm|textbf)\b|[{}]", " ", inside))
        return found[-1] if found else None
    if said := _SAID.findall(text):
        return str(said[-1])
    alone = set(_ALONE.findall(text))
    if len(alone) == 1:
        return str(alone.pop())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = (_LINE.fullmatch(line) for line in (*lines[-1:], *lines[:1]))
    return next((m.group(1) for m in starts if m), None)
