"""Why a worker has failed: the cause instead of its wrappers, and whether another try may help."""

from __future__ import annotations

import builtins
import re

from npd_ascend import out_of_memory
from npd_ascend.errors import NpdError, of_the_disk
from npd_ascend.visible import one_line

_ENGINE = re.compile(r"\b(E[A-Z0-9]\d{4}|EI\d{4}|EZ\d{4})\b")  # CANN's and HCCL's numbers
_RULE = re.compile(r"^[\s\-=*#]*$|^-+ .* -+$|^(Traceback|- (C\+\+|The|Framework|Ascend)\b.*:?$)")
_LAST = re.compile(r"^(?:\S+ )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt))\b: ?(.*)$")
_WRAPPERS = ("Distributed job exited with exception", "Engine core initialization failed", "See root cause above")
_LASTING = (
    ImportError, SyntaxError, NameError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError,
    AssertionError, ArithmeticError,
)  # fmt: skip
"""Kinds of error that a program makes of the same input each time."""


def cause(error: BaseException) -> str:
    """``KindOfError: line`` of the exception at the bottom, with the line that says most of an engine's many."""
    while (below := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = below
    lines = [line.strip() for line in str(error).splitlines() if not _RULE.match(line)]
    best = next((line for line in lines if _ENGINE.search(line)), lines[0] if lines else "")
    return one_line(f"{type(error).__name__}: {best}" if best else type(error).__name__)


def advice(error: BaseException, module: str) -> str | None:
    """One line for faults of the surroundings that have a remedy; None for others."""
    if isinstance(error, OSError) and (found := of_the_disk(error)):
        return found
    found = out_of_memory.advice(error, module)
    return f"{module}: {found}" if found else None


def last_error(log: str) -> str:
    """The last exception that a log shows and that is no wrapper around another one; empty without any."""
    for line in reversed(log.splitlines()):
        if (found := _LAST.match(line.strip())) and not any(w in line for w in _WRAPPERS):
            return one_line(f"{found[1].rpartition('.')[2]}: {found[2]}".rstrip(": "))
    return ""


def is_error(why: str) -> bool:
    """Whether it is an exception that says why, rather than a signal or a silence."""
    return re.match(r"\w*(Error|Exception)\b", why) is not None


def lasts(why: str) -> bool:
    """Whether an error (``cause``, ``last_error``) will come again however often the job is tried."""
    kind = getattr(builtins, why.partition(":")[0], None)
    return why.startswith("ModuleNotFoundError") or (isinstance(kind, type) and issubclass(kind, _LASTING))


class PoolClosed(NpdError):
    """``close`` was called while a job was running (from another thread, or a signal handler)."""
