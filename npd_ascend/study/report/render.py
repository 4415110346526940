"""Sections to ``index.html`` (one self-contained page) and ``summary.md`` with its figures beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

import npd_ascend.report
from npd_ascend import __version__
from npd_ascend.config.yaml_text import read_yaml
from npd_ascend.report.build import environment
from npd_ascend.store.atomic import write_bytes
from npd_ascend.study.report import external_baselines
from npd_ascend.study.report.compare import COUNTED, VERDICTS
from npd_ascend.study.report.figures import standalone
from npd_ascend.study.report.paper import LOWER_IS_BETTER
from npd_ascend.study.report.readings import MACHINE, Readings, notes
from npd_ascend.study.report.sections import Section, Table, absent, gain_text, headline, sections
from npd_ascend.visible import visible

_SIGN = {
    "accuracy": "accuracy",
    "gain": "gain",
    "kl_st": "KL(S‖T)",
    "kl_ts": "KL(T‖S)",
    "exaccerr": "ExAccErr",
    "seconds": "time",
}
READING = (
    "Intervals are 95 %: Student's t over seeds; for differences of accuracy the held-out prompts count as drawn too. "
    "Arms are compared on the same seeds and prompts. A claim is **shown** when the whole interval lies on its side, "
    "**not shown** when it includes 0 (1 for factors), **against** when it lies on the other. Nothing is corrected for "
    "the number of claims: of twenty true nulls one would look like an effect. KL is over the whole vocabulary, nats a "
    "token, along the student's own greedy answers to held-out prompts; T is the teacher, S the student. KL(S‖start), "
    "where it was measured: how far the student has moved from the one that it began as. ExAccErr: "
    "excess accumulated error (Arora et al. 2022, arXiv:2204.01171) against the teacher's own answers; it is relative "
    "to the error on those, so a student that fits them perfectly scores high: read it with KL beside it."
)


def build(root: Path, out: Path | None = None) -> Path:
    """Writes the report of a study, finished or not.

    Args:
        root: study directory.
        out: folder of the report; ``<root>/report`` when None.

    Returns:
        The page.

    Raises:
        UserError: there are no results.
    """
    root = Path(root)
    out = Path(out) if out else root / "report"
    readings = Readings.read(root)
    found = sections(readings, notes(root))
    found += [s for s in (external_baselines.section(root), absent(root, readings)) if s]
    facts = _facts(root)
    for section in found:
        for picture in section.pictures:
            write_bytes(out / f"{picture.name}.svg", standalone(str(picture.svg)).encode())
    write_bytes(out / "summary.md", visible(markdown(root.resolve().name, found, facts)).encode())
    page = out / "index.html"
    write_bytes(page, html(root.resolve().name, found, facts).encode())
    return page


def html(name: str, found: list[Section], facts: list[tuple[str, str]]) -> str:
    """The page; everything that did not come from this package is escaped."""
    css = (Path(npd_ascend.report.__file__).parent / "templates" / "report.css").read_text()
    env = environment(Path(__file__).parent / "templates")
    return env.get_template("study.html.j2").render(
        name=name,
        sections=found,
        facts=facts,
        css=css,
        tiles=_tiles(found),
        verdict=_verdict,
        reading=READING.replace("**", ""),
    )


def markdown(name: str, found: list[Section], facts: list[tuple[str, str]]) -> str:
    """The same as Markdown; figures are files beside it."""
    counts = headline(found)
    lines = [
        f"# Study: {name}",
        "",
        "; ".join(f"{k}: {v}" for k, v in facts) + ".",
        "",
        *(
            ["Claims: " + ", ".join(f"{counts[k]} {COUNTED[k]}" for k in VERDICTS if k in counts) + ".", ""]
            * bool(counts)
        ),
        READING,
        "",
    ]
    for s in found:
        lines += [f"## {s.title}", ""]
        if s.source or s.note:
            lines += [" ".join(x for x in (f"Paper: {s.source}." if s.source else "", s.note) if x), ""]
        for t in s.tables:
            lines += [*_markdown_table(t), ""]
            if t.caption:
                lines += [t.caption, ""]
        if s.verdicts:
            lines += [*_markdown_table(Table(list(_VERDICT_HEAD), [list(_verdict(v)[:-1]) for v in s.verdicts])), ""]
        lines += [x for r in s.remarks for x in (f"* {r}",)] + ([""] if s.remarks else [])
        lines += [x for p in s.pictures for x in (f"![{p.title}]({p.name}.svg)", "")]
    return "\n".join(lines).rstrip() + "\n"


_VERDICT_HEAD = ("task", "claim", "of the paper", "here", "verdict")


def _verdict(v: Any) -> tuple[str, str, str, str, str, str]:
    c = v.claim
    mark = "<" if c.measure in LOWER_IS_BETTER else ">"
    return (v.task, f"{_SIGN[c.measure]}: {c.better} {mark} {c.worse}", c.where, gain_text(v), v.text, v.outcome)


def _markdown_table(t: Table) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    return [line(t.head), "|---|" + "---:|" * (len(t.head) - 1), *map(line, t.rows)]


def _tiles(found: list[Section]) -> list[tuple[str, str, str]]:
    counts = headline(found)
    tiles = (
        []
        if not counts
        else [
            (
                "Claims shown",
                f"{counts.get('shown', 0)} of {sum(counts.values())}",
                f"{counts.get('open', 0)} not shown, {counts.get('against', 0)} against"
                + (f", {counts['few']} without interval" if "few" in counts else ""),
            )
        ]
    )
    for section in found:
        for v in section.verdicts:
            if v.claim.measure == "seconds" and v.gain is not None:
                where = v.claim.where if v.claim.where.startswith("part of") else f"paper: {v.claim.where}"
                tiles.append(
                    (
                        f"Time of {v.claim.worse} / {v.claim.better}, {v.task}",
                        f"{v.gain.mean:.1f}x",
                        f"same prompts; {where}",
                    )
                )
    return tiles[:8]


def _facts(root: Path) -> list[tuple[str, str]]:
    facts = [("npd_ascend", __version__), ("report written", time.strftime("%Y-%m-%d"))]
    try:
        study = read_yaml((root / "study.yaml").read_text())
        facts += [("seeds", ", ".join(map(str, study["study"]["seeds"]))), ("tasks", ", ".join(study["tasks"]))]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        pass
    try:
        facts.append(("machine", (root / MACHINE).read_text().strip()))
    except (OSError, UnicodeDecodeError):
        pass
    return facts
