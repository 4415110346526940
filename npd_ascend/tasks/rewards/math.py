"""The same mathematical value, by math-verify."""

from __future__ import annotations

from typing import Any

from npd_ascend.tasks.registry import Attempt, register
from npd_ascend.tasks.rewards.number import boxed
from npd_ascend.tasks.worker import Workers

_SECONDS = 10.0
_LONGEST = 4096
"""Characters: an answer stands at the end, and no value of use is longer."""
_WORKERS = Workers(
    "npd_ascend.tasks.rewards.math:same",
    "npd_ascend.tasks.rewards.math:usable",
    "run scripts/setup_env.sh, or pip install math-verify==0.9.0 'latex2sympy2-extended[antlr4_13_2]'",
)


@register("math", needs_answer=True, check=_WORKERS.check)
def math(attempt: Attempt, data: Any = None) -> bool:
    """The value of the last ``\\boxed{}``, or of the end of the text where there is none, equals the answer's.

    Two boxed values in one text would be read as the set of both, and a bare answer is often not read at all, so both
    sides are given as one box. A value that cannot be computed within 10 s is wrong.
    """
    if attempt.answer is None:
        return False
    inside, right = boxed(attempt.response), right_of(attempt.answer)
    if inside is not None and inside.strip() == right:
        return True
    given = attempt.response[-_LONGEST:] if inside is None else f"\\boxed{{{inside}}}"
    if not given.strip() or len(given) > _LONGEST + 8:
        return False
    return _WORKERS.ask(_SECONDS, gold=f"\\boxed{{{right}}}", given=given) is True


def right_of(answer: str) -> str:
    """The value that a solution of the data ends in: in its last box, behind ``####``, or all of it."""
    inside = boxed(answer)
    found = answer.rpartition("####")[2] if inside is None else inside
    return found.strip().strip("$").strip()


def usable() -> None:
    """In a worker: math-verify and its parser are there."""
    if not same("\\boxed{1}", "\\boxed{1}"):
        raise ImportError("math-verify does not read numbers")


def same(gold: str, given: str) -> bool:
    """In a worker: math-verify's verdict. Its own time limits work in a main thread only; the worker's alarm does
    their duty."""
    from math_verify import parse, verify

    # The order matters: what is given is compared with what is right, never the other way round.
    return bool(verify(parse(gold, parsing_timeout=None), parse(given, parsing_timeout=None), timeout_seconds=None))
