"""metrics.jsonl: one JSON line a fact, for people, plots and other programs."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.store.atomic import write_bytes

TERM = "term_"
"""Begins the names of loss terms in metrics.jsonl that are neither cross-entropy nor a divergence."""
WATCHED = "policy_"
"""Begins the names of what is watched of policy-gradient terms."""
# Fields that place a row must be finite; measured ones may be NaN, which is a finding.
_PLACES = {"step", "progress", "generation", "seconds", "busy", "tokens", "samples", "time"}
_MEASURES = {"lr", "loss", "ce", "kd", "grad_norm", "forward", "reverse"}


class MetricsWriter:
    """Appends rows ``{"kind", "time", ...}``; several processes may append to one file."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def log(self, kind: str, **values: Any) -> None:
        """Appends one row. Kinds in use: ``train``, ``lag``, ``refresh``, ``stage``, ``evaluate``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **values}, default=float) + "\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # A torn last line of a killed writer must not swallow this row.
            data = ("\n" + line if _torn(self.path) else line).encode()
            if os.write(fd, data) < len(data):  # the disk filled up in the middle of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(fd)

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Removes rows, e.g. those of steps that a resumed training will do again."""
        rows = read_metrics(self.path)
        kept = [r for r in rows if not unwanted(r)]
        if len(kept) != len(rows):
            write_bytes(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows in order; a torn line (killed writer) is passed over. Empty when there is no file."""
    rows = []
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("kind"), str):
            rows.append(row)
    return rows


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row without fields that are not the numbers they should be: the file may be of another program."""

    def sound(key: str, value: Any) -> bool:
        measure = key in _MEASURES or key.startswith((TERM, WATCHED))
        if key not in _PLACES and not measure:
            return True
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
        return number or (measure and isinstance(value, float))

    return {k: v for k, v in row.items() if sound(k, v)}


def _torn(path: Path) -> bool:
    with open(path, "rb") as f:
        if f.seek(0, os.SEEK_END) == 0:
            return False
        f.seek(-1, os.SEEK_END)
        return f.read(1) != b"\n"
