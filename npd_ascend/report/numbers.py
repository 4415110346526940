"""Numbers as people read them, each with its unit."""

from __future__ import annotations

import math

MISSING = "–"


def number(x: float | int | None, digits: int = 3) -> str:
    """``12,345``, ``40.1``, ``0.0031``: thousands separated, otherwise ``digits`` significant digits."""
    if x is None or not math.isfinite(x):
        return MISSING
    if float(x).is_integer() or abs(x) >= 10**digits:
        return f"{x:,.0f}"
    if abs(x) < 1e-4:
        return f"{x:.{digits - 1}e}"
    return f"{x:.{max(digits - 1 - math.floor(math.log10(abs(x))), 0)}f}"


def percent(x: float | None, digits: int = 1) -> str:
    """``96.2 %`` of 0.962."""
    return MISSING if x is None or not math.isfinite(x) else f"{100 * x:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """``3.1 s``, ``4:05 min``, ``2:03:05 h``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    m, s = divmod(round(seconds), 60)
    return f"{m}:{s:02d} min" if m < 60 else f"{m // 60}:{m % 60:02d}:{s:02d} h"


def size(n: float | None) -> str:
    """``1.2 MB`` (powers of 1000)."""
    if n is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{number(n)} {unit}"
        n /= 1000
    return f"{number(n)} TB"
