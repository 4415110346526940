"""The program of a response passes the tests, in the sandbox."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.tasks import sandbox
from npd_ascend.tasks.registry import Attempt, register

_BLOCK = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@register("code", needs_answer=True, check=sandbox.check)
def code(
    attempt: Attempt, data: Any = None, *, seconds: float = 10.0, memory_mb: int = 512, processes: int = 32
) -> bool:
    """The tests run to their end without an error.

    The answer is a JSON object: ``tests`` (program text that raises where the answer is wrong), and if need be
    ``before`` (put in front, say imports), ``prompt`` and ``entry_point`` (what the response completes, where it does
    not define ``entry_point`` itself).

    Args:
        attempt: the response; of several blocks of code the last one counts, of none all of it.
        data: not used.
        seconds: for the program and its tests.
        memory_mb: of all its processes together.
        processes: that it may have at once.
    """
    if attempt.answer is None:
        return False
    done = secrets.token_hex(16)
    limits = sandbox.Limits(seconds=seconds, memory=memory_mb << 20, processes=processes)
    found = sandbox.run(program(attempt.response, attempt.answer, done), limits=limits)
    # A program that ends by itself before its tests have run has not passed them.
    return found.passed and found.stdout.rstrip().endswith(done)


def program(response: str, answer: str, done: str) -> str:
    """What is run: the response's code, the tests, and a last line that says ``done``.

    Raises:
        UserError: the answer is not what ``code`` reads.
    """
    try:
        wanted = json.loads(answer)
        before, tests = str(wanted.get("before") or ""), str(wanted["tests"])
        prompt, entry = str(wanted.get("prompt") or ""), str(wanted.get("entry_point") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"answer {answer[:80]!r} is no JSON object with tests, which reward code reads") from None
    text = code_of(response)
    if entry and not re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(entry)}\b", text, re.MULTILINE):
        text = prompt + text
    return "\n".join((before, text, tests, f"print({done!r})", ""))


def code_of(response: str) -> str:
    """The last block of code of a response, or all of it."""
    blocks: list[str] = _BLOCK.findall(response)
    return blocks[-1] if blocks else response
