"""The same final number, for arithmetic and word problems."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from npd_ascend.tasks.registry import Attempt, register

_NUMBER = re.compile(r"[-+−]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+(?!\d))?|[-+−]?\$?\.\d+")


@register("number", needs_answer=True)
def number(attempt: Attempt, data: Any = None) -> bool:
    """The same final number: after ``####``, in the last ``\\boxed{}``, or the last one in the text, in this order."""
    if attempt.answer is None:
        return False
    right, given = final_number(attempt.answer), final_number(attempt.response)
    return right is not None and given is not None and right == given


def final_number(text: str) -> Decimal | None:
    """The number that a solution ends in, or None.

    Thousands separators, a dollar sign, a percent sign and units around it are passed over; ``a/b`` is divided.
    """
    marked = text.rpartition("####")[2] if "####" in text else boxed(text)
    if marked is not None:
        found = _NUMBER.search(_unlatex(marked))
        return _value(found.group()) if found else None
    found_all = _NUMBER.findall(_unlatex(text))
    return _value(found_all[-1]) if found_all else None


def _unlatex(text: str) -> str:
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    return text.replace("\\$", "$").replace("{,}", ",").replace("\\!", "")


def boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{...}``, braces inside it balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[begin:place]
    return None  # cut off by the length limit


def _value(digits: str) -> Decimal | None:
    top, _, bottom = digits.replace(",", "").replace("$", "").replace("−", "-").partition("/")
    try:
        return Decimal(top) / Decimal(bottom) if bottom else Decimal(top)
    except (InvalidOperation, ZeroDivisionError):
        return None
