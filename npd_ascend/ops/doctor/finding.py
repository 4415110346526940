"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the examination, with its remedy when something is wrong."""

    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


def ok(what: str) -> Finding:
    """All is well."""
    return Finding("ok", what)


def warning(what: str, remedy: str) -> Finding:
    """It may go wrong, or go slowly."""
    return Finding("warning", what, remedy)


def error(what: str, remedy: str = "") -> Finding:
    """It will go wrong."""
    return Finding("error", what, remedy)


def render(findings: list[Finding]) -> str:
    """The findings as lines."""
    mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
    return "\n".join(f"{mark[f.level]}  {f.what}" + (f"\n         -> {f.remedy}" if f.remedy else "") for f in findings)
