"""``results.jsonl`` of a study, looked at by task, group, arm and seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from npd_ascend.arrays import Array
from npd_ascend.config.yaml_text import read_yaml
from npd_ascend.errors import UserError
from npd_ascend.store.metrics import read_metrics

Row = dict[str, Any]
FILE = "results.jsonl"
MACHINE = "machine.txt"
"""Beside the results: where the study was run."""


@dataclass(frozen=True)
class Series:
    """One measured quantity of one arm and seed along training; rows in the order of training.

    Attributes:
        rows: rows of one kind.
    """

    rows: tuple[Row, ...]

    def column(self, key: str) -> Array:
        """float64, NaN where a row lacks the key or holds null."""
        return np.array([np.nan if r.get(key) is None else float(r[key]) for r in self.rows])


class Readings:
    """All rows of a study.

    Args:
        rows: as ``read`` finds them; a later row of the same arm, seed, kind, step and stage replaces an earlier one.
    """

    def __init__(self, rows: Iterable[Row]):
        latest: dict[tuple[Any, ...], Row] = {}
        for i, row in enumerate(rows):
            if not all(isinstance(row.get(k), str) for k in ("task", "group", "arm", "kind")):
                continue
            unique = (row["kind"] == "note", i) if row["kind"] == "note" else ()
            latest[
                (
                    row["task"],
                    row["group"],
                    row["arm"],
                    row.get("seed"),
                    row["kind"],
                    row.get("step"),
                    row.get("stage"),
                    row.get("generation"),
                    *unique,
                )
            ] = row
        self.rows = list(latest.values())

    @classmethod
    def read(cls, folder: Path) -> Readings:
        """Of a study directory; arms stand in the order of its ``study.yaml``, where there is one.

        Raises:
            UserError: there is no results file, or nothing in it.
        """
        path = Path(folder) / FILE
        if not path.exists():
            raise UserError(f"{path}: not there; is {folder} the directory of a study that has begun?")
        place = {key: i for i, key in enumerate((g, a) for g, arms in planned(folder).items() for a in arms)}
        found = cls(
            sorted(read_metrics(path), key=lambda r: place.get((str(r.get("group")), str(r.get("arm"))), len(place)))
        )
        if not found.rows:
            raise UserError(f"{path}: holds no results yet")
        return found

    def tasks(self, group: str | None = None) -> list[str]:
        """Tasks in order of appearance, of one group or of all."""
        return _order(r["task"] for r in self.rows if group in (None, r["group"]))

    def groups(self) -> list[str]:
        """Groups in order of appearance."""
        return _order(r["group"] for r in self.rows)

    def arms(self, task: str, group: str) -> list[str]:
        """Arms in order of appearance."""
        return _order(r["arm"] for r in self.rows if (r["task"], r["group"]) == (task, group))

    def series(self, task: str, group: str, arm: str, kind: str) -> dict[int, Series]:
        """Seed -> rows of a kind."""
        found: dict[int, list[Row]] = {}
        for r in self.rows:
            if (r["task"], r["group"], r["arm"], r["kind"]) == (task, group, arm, kind):
                found.setdefault(int(r.get("seed") or 0), []).append(r)
        return {
            seed: Series(tuple(sorted(rows, key=lambda r: r.get("step") or 0))) for seed, rows in sorted(found.items())
        }

    def last(self, task: str, group: str, arm: str, kind: str) -> dict[int, Row]:
        """Seed -> last row of a kind."""
        return {seed: s.rows[-1] for seed, s in self.series(task, group, arm, kind).items()}

    def notes(self, group: str) -> list[Row]:
        """Remarks left by the study itself."""
        return [r for r in self.rows if r["kind"] == "note" and r["group"] == group]


def hits(row: Row) -> Array | None:
    """0/1 [P] of an ``eval`` row, from a list or a string of bits; None when it has none."""
    value = row.get("hits")
    if isinstance(value, str) and value:
        return np.frombuffer(value.encode(), np.uint8) - ord("0")
    return np.asarray(value, np.uint8) if isinstance(value, Sequence) and len(value) else None


def by_prompt(row: Row, measure: str) -> Array | None:
    """[P] values of a measure, one a held-out prompt; None where the row holds only its mean."""
    if measure == "accuracy":
        return hits(row)
    values = row.get("by_answer")
    found = values.get(measure) if isinstance(values, dict) else None
    return np.asarray(found, np.float64) if isinstance(found, Sequence) and len(found) else None


def planned(folder: Path) -> dict[str, list[str]]:
    """Arms of each group in the order of the study's file; empty when there is none that can be read."""
    try:
        return {str(g): [str(a) for a in group["arms"]] for g, group in _groups(folder).items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def notes(folder: Path) -> dict[str, str]:
    """What the study's file says of its groups; empty when there is none that can be read."""
    try:
        return {str(g): str(group.get("note") or "") for g, group in _groups(folder).items()}
    except AttributeError:
        return {}


def _groups(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_yaml((Path(folder) / "study.yaml").read_text())["groups"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return {}


def _order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
