"""Answer checkers: is this response a right answer to this prompt? A registry of small functions.

A checker takes an ``Attempt`` and the content of ``evaluate.checker_data`` and says yes or no. Whatever a model
writes is data: a checker never raises for a response, however odd.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError


@dataclass(frozen=True)
class Attempt:
    """One response to be checked.

    Attributes:
        prompt: the user's turn.
        response: what the model answered, without special tokens and thinking text.
        answer: what the data gives as right, or None.
    """

    prompt: str
    response: str
    answer: str | None


Checker = Callable[[Attempt, Any], bool]
CHECKERS: dict[str, Checker] = {}


def register(name: str) -> Callable[[Checker], Checker]:
    """Enters a checker under the name by which a config asks for it."""

    def enter(function: Checker) -> Checker:
        CHECKERS[name] = function
        return function

    return enter


def get_checker(name: str) -> Checker:
    """The checker of that name.

    Raises:
        UserError: there is none.
    """
    if name not in CHECKERS:
        raise UserError(f"evaluate.checker {name!r} is unknown; there are: {', '.join(sorted(CHECKERS))}")
    return CHECKERS[name]


def load_checker_data(path: Path | None) -> Any:
    """Content of a checker's JSON file, or None without one.

    Raises:
        UserError: missing, or not JSON.
    """
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"evaluate.checker_data {path}: cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"evaluate.checker_data {path}: not valid JSON") from None


@register("exact")
def exact(attempt: Attempt, data: Any = None) -> bool:
    """The same text, white space at both ends aside."""
    return attempt.answer is not None and attempt.response.strip() == attempt.answer.strip()


_NUMBER = re.compile(r"[-+−]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+(?!\d))?|[-+−]?\$?\.\d+")


@register("number")
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
    marked = text.rpartition("####")[2] if "####" in text else _boxed(text)
    if marked is not None:
        found = _NUMBER.search(_unlatex(marked))
        return _value(found.group()) if found else None
    found_all = _NUMBER.findall(_unlatex(text))
    return _value(found_all[-1]) if found_all else None


def _unlatex(text: str) -> str:
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    return text.replace("\\$", "$").replace("{,}", ",").replace("\\!", "")


def _boxed(text: str) -> str | None:
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


@register("maze")
def maze(attempt: Attempt, data: Any = None) -> bool:
    """A legal walk from the prompt's first place to its second, within twice the shortest distance and 6 hops.

    ``data`` is ``{"neighbours": {place: [place, ...]}}``.
    """
    neighbours = data.get("neighbours") if isinstance(data, dict) else None
    if not isinstance(neighbours, dict):
        raise UserError("evaluate.checker maze needs evaluate.checker_data: a JSON file with the maze's 'neighbours'")
    ends = attempt.prompt.split()
    if len(ends) != 2 or not all(end in neighbours for end in ends):
        raise UserError(f"prompt {attempt.prompt!r} does not name two places of the maze; is it the right "
                        "checker_data?")
    here, goal = ends
    walk = attempt.response.split()
    distance = _distance(neighbours, here, goal)
    if distance is None or len(walk) > 2 * distance + 6:
        return False
    for there in walk:
        if there not in neighbours[here]:
            return False
        here = there
    return here == goal


def _distance(neighbours: dict[str, list[str]], start: str, goal: str) -> int | None:
    hops = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if here == goal:
            return hops[here]
        for there in neighbours[here]:
            if there not in hops:
                hops[there] = hops[here] + 1
                queue.append(there)
    return None
