"""Rules that an answer must keep, as a JSON object in the answer field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import Attempt, register
from npd_ascend.tasks.rewards.number import final_number


def _texts(value: Any) -> list[str]:
    return [str(v) for v in (value if isinstance(value, list) else [value])]


def _word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


_RULES: dict[str, Callable[[str, Any], bool]] = {
    "all": lambda text, value: all(t.lower() in text.lower() for t in _texts(value)),
    "any": lambda text, value: any(t.lower() in text.lower() for t in _texts(value)),
    "words": lambda text, value: all(_word(text, t) for t in _texts(value)),
    "number": lambda text, value: final_number(text) == final_number(str(value)),
    "max_words": lambda text, value: 0 < len(text.split()) <= int(value),
    "min_commas": lambda text, value: text.count(",") >= int(value),
    "ends": lambda text, value: text.rstrip().endswith(str(value)),
}
"""``all``, ``any``: texts that occur, in whatever case; ``words``: whole words that occur as they are written;
``number``: the last number; ``max_words``: at most this many, at least one; ``min_commas``: at least this many
commas; ``ends``: the last characters."""


@register("rules", needs_answer=True)
def rules(attempt: Attempt, data: Any = None) -> bool:
    """All rules of the answer hold, such as ``{"any": ["Paris"], "max_words": 20}``.

    Raises:
        UserError: the answer is no JSON object of known rules.
    """
    if attempt.answer is None:
        return False
    try:
        wanted = json.loads(attempt.answer)
        # A list, so that a rule that cannot be read is found even behind one that is broken.
        return all([_RULES[name](attempt.response, value) for name, value in wanted.items()])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = ", ".join(_RULES)
        raise UserError(f"answer {attempt.answer!r} is no JSON object of rules; known are {known}") from None
