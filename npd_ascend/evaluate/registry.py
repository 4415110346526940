"""Answer checkers by name: is this response a right answer to this prompt?

A checker is one function in one file of ``checkers/``: it takes an ``Attempt`` and the content of
``evaluate.checker_data`` and says yes or no. Whatever a model writes is data: a checker never raises for a response,
however odd. A plain function of the user's own (``module:function``) serves as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.registry import Registry


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
CHECKERS: Registry[Checker] = Registry("checker", "evaluate.checker", "npd_ascend.evaluate.checkers", wrap=lambda f: f)


def register(name: str) -> Callable[[Checker], Checker]:
    """Decorator that makes a function the checker of its file."""
    return CHECKERS.decorator(lambda function: function, name)


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
