"""Scores of checkpoints side by side, with the paper's: for the terminal, as Markdown, as LaTeX, and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npd_ascend.bench.paper import COLUMNS, ELEVEN, Column
from npd_ascend.bench.results import Result, read_folder
from npd_ascend.errors import UserError

FORMATS = ("markdown", "latex")
_TITLES = {"aime24": "AIME24", "aime25": "AIME25", "livecodebench": "LiveCodeBench", "avg": "AVG of 11"}
_SIGNS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Table:
    """Rows are benchmarks, columns checkpoints and rows of the paper.

    Attributes:
        head: names of the columns.
        rows: cells, the first the benchmark's title.
        notes: what the letters behind scores mean, one line each.
    """

    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lines(results: Sequence[Result]) -> str:
    """One line a score, for the terminal."""
    return "\n".join(
        f"{r.title}: {100 * r.score:.2f} (95 % interval {100 * r.interval[0]:.2f} to {100 * r.interval[1]:.2f}, "
        f"n = {r.n}{''.join(f'; {mark}' for mark in r.marks)})"
        for r in results
    )


def compare(folders: Sequence[Path], form: str, paper: str = "") -> str:
    """The table as text.

    Args:
        folders: with scores in them or below.
        form: one of ``FORMATS``.
        paper: numbers of the paper's tables, with commas between them.

    Raises:
        UserError: there are no scores, or no such form or table.
    """
    if form not in FORMATS:
        raise UserError(f"--table {form}: choose {' or '.join(FORMATS)}")
    results = [result for folder in folders for result in read_folder(folder)]
    if not results:
        raise UserError(f"there are no scores below {', '.join(map(str, folders))}; npd bench makes them")
    table = tabulate(results, columns_of(paper))
    return markdown(table) if form == "markdown" else latex(table)


def columns_of(paper: str) -> list[Column]:
    """Columns of some tables of the paper.

    Raises:
        UserError: one of them is not here.
    """
    wanted, known = [t for t in paper.split(",") if t], sorted({c.table for c in COLUMNS}, key=int)
    if unknown := [t for t in wanted if t not in known]:
        raise UserError(f"--paper {unknown[0]}: known are tables {', '.join(known)}")
    return [c for c in COLUMNS if c.table in wanted]


def tabulate(results: Sequence[Result], paper: Sequence[Column]) -> Table:
    """All scores; a checkpoint's mean over the eleven benchmarks where it has them all."""
    checkpoints = list(dict.fromkeys((r.checkpoint_id, _name(r)) for r in results))
    by_place = {(r.benchmark, r.checkpoint_id): r for r in results}
    titles = {r.benchmark: r.title for r in results}
    scored = [b for b in ELEVEN if b in titles] + sorted(b for b in titles if b not in ELEVEN)
    table = Table(
        ["benchmark", *(name for _, name in checkpoints), *(f"paper, Table {c.table}: {c.title}" for c in paper)]
    )
    signs: dict[str, str] = {}
    for benchmark in scored:
        own = [_cell(by_place.get((benchmark, identity)), signs) for identity, _ in checkpoints]
        table.rows.append([titles[benchmark], *own, *(_figure(c.scores.get(benchmark)) for c in paper)])
    means = [_mean([by_place.get((b, identity)) for b in ELEVEN]) for identity, _ in checkpoints]
    theirs = [c.scores.get("avg") if set(ELEVEN) <= c.scores.keys() or c.table == "7" else None for c in paper]
    if any(m is not None for m in (*means, *theirs)):
        table.rows.append([_TITLES["avg"], *map(_figure, (*means, *theirs))])
    table.notes = [f"{sign}: {text}" for text, sign in signs.items()]
    return table


def markdown(table: Table) -> str:
    """As Markdown."""
    rows = [table.head, ["---"] + ["---:"] * (len(table.head) - 1), *table.rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join((text, *table.notes))


def latex(table: Table) -> str:
    """As a LaTeX tabular (package booktabs)."""
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in (table.head, *table.rows)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}"
    notes = (f"% {note}" for note in table.notes)
    return "\n".join([begin, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}", *notes])


def _name(result: Result) -> str:
    """The checkpoint's folder, with the one above it where it says more."""
    path = Path(result.checkpoint)
    return f"{path.parent.name}/{path.name}" if path.name in ("export", "student", "teacher") else path.name


def _cell(result: Result | None, signs: dict[str, str]) -> str:
    """Score with its interval, and letters for what makes it another measurement."""
    if result is None:
        return "–"
    low, high = result.interval
    letters = "".join(signs.setdefault(mark, _SIGNS[len(signs) % len(_SIGNS)]) for mark in result.marks)
    return f"{100 * result.score:.2f} [{100 * low:.1f}, {100 * high:.1f}]{' ' * bool(letters)}{letters}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mean(results: Sequence[Result | None]) -> float | None:
    found = [100 * r.score for r in results if r and not r.marks]
    return sum(found) / len(found) if len(found) == len(results) else None


def _escaped(text: str) -> str:
    for char in "\\&%$#_{}":
        text = text.replace(char, "\\textbackslash{}" if char == "\\" else f"\\{char}")
    return text.replace("–", "--")
