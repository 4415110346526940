"""What a study's report says, as sections of tables, figures and verdicts; HTML and Markdown are made from these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from npd_ascend.report.numbers import number, percent
from npd_ascend.study.report import figures
from npd_ascend.study.report.compare import Verdict, difference, estimate, gain, judge, race, spikes, values
from npd_ascend.study.report.paper import GROUPS, TARGET_SPEEDUP, Group
from npd_ascend.study.report.readings import Readings, planned
from npd_ascend.study.statistics import Estimate, ratio

_ACCURATE = 0.03
"""Below this best accuracy a task says nothing by accuracy; its measures are divergences."""
_FEW = 5
"""Generations of which a table's cell shows each."""
_COLUMNS = (
    ("kl_ts", "KL(T‖S)"),
    ("kl_ts_no_loops", "without loops"),
    ("kl_st", "KL(S‖T)"),
    ("kl_st_no_loops", "without loops"),
    ("exaccerr", "ExAccErr, %"),
    ("nll", "NLL of teacher's answers"),
    ("reference_nll", "NLL of held-out answers"),
    ("teacher_nll", "teacher's NLL of its answers"),
    ("drift", "KL(S‖start)"),
    ("ended", "ended, %"),
    ("loops", "looping, %"),
)
_WRITE = {"exaccerr": "whole", "ended": "points", "loops": "points"}
"""How a column's numbers are written, when not in nats."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with its words; ``name`` is the file's."""

    name: str
    title: str
    svg: Markup
    caption: str = ""
    wide: bool = False


@dataclass
class Section:
    """One question."""

    id: str
    title: str
    source: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def sections(readings: Readings, notes: Mapping[str, str] | None = None) -> list[Section]:
    """One section a group, those of the paper first and in its order.

    Args:
        readings: of the study.
        notes: what its file says of the groups.
    """
    names = [g for g in GROUPS if g in readings.groups()] + [g for g in readings.groups() if g not in GROUPS]
    return [_section(readings, g, (notes or {}).get(g, "")) for g in names]


def absent(root: Path, readings: Readings) -> Section | None:
    """What the study's file asks for and the results lack; None when nothing."""
    rows = []
    for group, arms in planned(root).items():
        seeds = {a: {r["seed"] for r in readings.rows if (r["group"], r["arm"]) == (group, a)} for a in arms}
        most = max(map(len, seeds.values()), default=0)
        none = [a for a in arms if not seeds[a]]
        some = [f"{a} ({len(s)})" for a, s in seeds.items() if 0 < len(s) < most]
        if none or some:
            rows.append([group, ", ".join(none) or "–", ", ".join(some) or "–"])
    if not rows:
        return None
    return Section(
        "absent",
        "What was not run",
        "",
        "The study's file asks for these arms too; they are no part of any figure above.",
        tables=[Table(["group", "no seed", "fewer seeds than others"], rows)],
    )


def reference_arm(group: Group, arms: list[str]) -> str:
    """The arm that the others are compared with."""
    return group.reference if group.reference in arms else arms[0]


def accurate(readings: Readings, task: str, group: str) -> bool:
    """Whether accuracy says anything on this task."""
    means = [estimate(readings, task, group, a, "accuracy") for a in readings.arms(task, group)]
    return any(e is not None and e.mean > _ACCURATE for e in means)


def _section(readings: Readings, name: str, note: str) -> Section:
    group = GROUPS.get(name, Group(name.capitalize()))
    out = Section(name, group.title, group.tables, note)
    for task in readings.tasks(name):
        arms = readings.arms(task, name)
        reference = reference_arm(group, arms)
        out.tables.append(_table(readings, task, name, group, arms, reference))
        if name == "speed":
            out.tables += _speed(readings, task, name, arms, reference) + _stages(readings, task, name, arms)
        out.tables += _training(readings, task, name, arms)
        out.pictures += _pictures(readings, task, name)
        usable = accurate(readings, task, name)
        out.verdicts += [
            judge(readings, task, name, c)
            for c in group.claims
            if c.better in arms and c.worse in arms and (usable or c.measure not in ("accuracy", "gain"))
        ]
        if not usable and any(estimate(readings, task, name, a, "accuracy") for a in arms):
            out.remarks.append(
                f"{task}: no arm gets {percent(_ACCURATE, 0)} of the answers right; accuracy says "
                f"nothing here, the divergences do."
            )
    out.remarks += [
        f"{r['task']}, {r['arm']}: {r['text']}" for r in readings.notes(name) if r.get("text") and "density" not in r
    ]
    return out


def with_interval(e: Estimate | None, write: Callable[[float], str], sign: bool = False) -> str:
    """``61.2 ± 1.3``, or with the ends where they are not even; the bare mean of one seed."""
    if e is None:
        return "–"
    mean = ("+" if sign and e.mean > 0 else "") + write(e.mean)
    return f"{mean} ± {write(e.half)}" if e.known else mean


def _nats(x: float) -> str:
    return f"{x:.3f}"


def _whole(x: float) -> str:
    return f"{x:.0f}"


def _points(x: float) -> str:
    return f"{100 * x:.1f}"


_WRITERS: dict[str, Callable[[float], str]] = {"nats": _nats, "whole": _whole, "points": _points}


def _table(readings: Readings, task: str, name: str, group: Group, arms: list[str], reference: str) -> Table:
    columns: list[tuple[str, Callable[[str], str]]] = []
    if group.paper:
        columns.append((f"paper: {group.unit}", lambda a: group.paper.get(a, "–")))

    def seeds(a: str) -> str:
        found = estimate(readings, task, name, a, "accuracy") or estimate(readings, task, name, a, "kl_ts")
        return str(found.n) if found else "–"

    def against(title: str, measure: str, write: Callable[[float], str]) -> None:
        def cell(a: str) -> str:
            if a == reference:
                return ""
            return with_interval(difference(readings, task, name, a, reference, measure), write, sign=True)

        if len(arms) > 1:
            columns.append((title, cell))

    columns.append(("seeds", seeds))
    if accurate(readings, task, name):
        own_starts = _own_starts(readings, task, name, arms)
        if own_starts:
            columns.append(("start, %", lambda a: with_interval(estimate(readings, task, name, a, "start"), _points)))
        columns.append(("accuracy, %", lambda a: with_interval(estimate(readings, task, name, a, "accuracy"), _points)))
        against(f"against {reference}, points", "accuracy", _points)
        if own_starts:
            columns.append(("gain, points", lambda a: with_interval(gain(readings, task, name, a), _points, sign=True)))
            against(f"gain against {reference}'s", "gain", _points)
    for key, title in _COLUMNS:
        if any(estimate(readings, task, name, a, key) for a in arms):
            columns.append(
                (
                    title,
                    lambda a, key=key: with_interval(  # type: ignore[misc]
                        estimate(readings, task, name, a, key), _WRITERS[_WRITE.get(key, "nats")]
                    ),
                )
            )
            if key == "kl_ts":
                against(f"against {reference}", "kl_ts", _nats)
    if any(_by_generation(readings, task, name, a, "reward", "mean") for a in arms):
        columns.append(
            ("reward", lambda a: _ends(_by_generation(readings, task, name, a, "reward", "mean"), lambda x: f"{x:.2f}"))
        )
    if any(_by_generation(readings, task, name, a, "zones", "kept") for a in arms):
        columns.append(
            ("kept", lambda a: _ends(_by_generation(readings, task, name, a, "zones", "kept"), lambda x: percent(x, 0)))
        )
    if any(estimate(readings, task, name, a, "seconds") for a in arms):
        columns.append(("seconds", lambda a: with_interval(estimate(readings, task, name, a, "seconds"), _whole)))
    return Table(
        [f"{task}: arm", *(c[0] for c in columns)],
        [[a, *(f(a) for _, f in columns)] for a in arms],
        _start(readings, task, name, arms),
    )


def _start(readings: Readings, task: str, name: str, arms: list[str]) -> str:
    """Where all arms come from."""
    found = [s.rows[0] for a in arms for s in readings.series(task, name, a, "eval").values() if s.rows[0]["step"] == 0]
    if not found or not accurate(readings, task, name):
        return ""
    steps = [s.rows[-1]["step"] for a in arms for s in readings.series(task, name, a, "train").values()]
    starts = [100 * r["accuracy"] for r in found]
    low, high = f"{min(starts):.1f}", f"{max(starts):.1f}"
    begin = f"All start at {low} %" if low == high else f"They start at {low} to {high} %"
    least, most = (min(steps), max(steps)) if steps else (0, 0)
    taken = f"; {least if least == most else f'{least} to {most}'} optimiser steps" if steps else ""
    return f"{begin} of {found[0]['n']} held-out prompts{taken}."


def _own_starts(readings: Readings, task: str, name: str, arms: list[str]) -> bool:
    """Whether the arms begin with different students."""
    found = [values(readings, task, name, a, "start") for a in arms]
    return len({of[seed] for of in found for seed in of}) > 1


def _by_generation(readings: Readings, task: str, name: str, arm: str, kind: str, key: str) -> list[float]:
    """A value of each generation, means over seeds."""
    found: dict[int, list[float]] = {}
    for s in readings.series(task, name, arm, kind).values():
        for r in s.rows:
            if r.get(key) is not None:
                found.setdefault(int(r.get("generation") or 0), []).append(float(r[key]))
    return [float(np.mean(v)) for _, v in sorted(found.items())]


def _ends(of: list[float], write: Callable[[float], str]) -> str:
    """Values of a few generations, of many the first and the last."""
    shown = [write(x) for x in of]
    return f"{shown[0]} … {shown[-1]}" if len(shown) > _FEW else ", ".join(shown) or "–"


def _speed(readings: Readings, task: str, name: str, arms: list[str], reference: str) -> list[Table]:
    """Same prompts, and same accuracy."""
    base = values(readings, task, name, reference, "seconds")
    rows = []
    for arm in arms:
        mine = values(readings, task, name, arm, "seconds")
        seeds = sorted(set(base) & set(mine))
        factor = ratio([mine[s] for s in seeds], [base[s] for s in seeds]) if seeds and arm != reference else None
        raced = race(readings, task, name, arm, reference) if arm != reference else None
        if not mine:
            continue
        rows.append(
            [
                arm,
                f"{np.mean(list(mine.values())):.0f}",
                "1" if arm == reference else _factor(factor),
                "" if raced is None else f"{100 * raced.target:.1f} %",
                "" if raced is None else number(raced.own),
                "" if raced is None else number(raced.reference),
                "" if raced is None else _factor(raced.factor),
                "" if raced is None else f"{raced.arrived[0]} of {raced.arrived[1]}",
            ]
        )
    if not rows:
        return []
    return [
        Table(
            [
                f"{task}: arm",
                "seconds for the same prompts",
                f"x {reference}",
                "its accuracy at the end",
                "seconds to it",
                f"{reference}'s seconds to it",
                "factor",
                f"seeds where {reference} gets there",
            ],
            rows,
            f"The paper's factor is {TARGET_SPEEDUP} (Table 1). Factors are geometric means over seeds, 95 % "
            f"intervals; above 1, {reference} is faster. Starting engines, compiling and evaluating are "
            "left out for all arms alike.",
        )
    ]


def _stages(readings: Readings, task: str, name: str, arms: list[str]) -> list[Table]:
    """Seconds of each stage; what is done for the study alone is left out."""
    found = {a: figures.by_stage(readings, task, name, a) for a in arms}
    top = max((sum(parts.values()) for parts in found.values()), default=0.0)
    stages = sorted(
        {k for parts in found.values() for k, v in parts.items() if v > 0.002 * top},
        key=lambda k: -sum(parts.get(k, 0) for parts in found.values()),
    )
    if not stages:
        return []
    return [
        Table(
            [f"{task}: seconds of", *(k.replace("_", " ") for k in stages)],
            [[a, *(f"{parts[k]:.1f}" if k in parts else "–" for k in stages)] for a, parts in found.items()],
            "teacher: the live prefill; annotate: the same, stored. Seeds averaged.",
        )
    ]


def _factor(e: Estimate | None) -> str:
    if e is None:
        return "–"
    return f"{e.mean:.2f}x" + (f" ({e.low:.2f}–{e.high:.2f})" if e.known else "")


def _training(readings: Readings, task: str, name: str, arms: list[str]) -> list[Table]:
    """Lag and loss spikes, where they were measured."""
    rows = []
    for arm in arms:
        lag = [s.column("forward") for s in readings.series(task, name, arm, "lag").values()]
        loss = [s.column("loss") for s in readings.series(task, name, arm, "train").values()]
        loss = [x for x in loss if len(x) > 20]
        if lag:
            rows.append(
                [
                    arm,
                    number(float(np.mean([x[-1] for x in lag])), 2),
                    number(float(np.mean([np.nanmax(x) for x in lag])), 2),
                    number(float(np.mean([spikes(x) for x in loss])), 2) if loss else "–",
                ]
            )
    if len(rows) < 2 or name not in ("sync", "filter", "baselines", "imperfect"):
        return []
    return [
        Table(
            [f"{task}: arm", "lag at the end", "largest lag", "loss spikes"],
            rows,
            "Lag: KL(current‖generator), nats a token, exact over the vocabulary. Spike: a step whose loss is "
            "over 1.5 times the median of the ten before it.",
        )
    ]


def _pictures(readings: Readings, task: str, name: str) -> list[Picture]:
    measure = "accuracy" if accurate(readings, task, name) else "kl_ts"
    timed = any(values(readings, task, name, a, "seconds") for a in readings.arms(task, name))
    ends = {
        s.rows[-1].get("progress")
        for a in readings.arms(task, name)
        for s in readings.series(task, name, a, "eval").values()
    }
    over = "progress" if len(ends) == 1 else "step"  # a pass over fewer prompts is a shorter epoch
    made = [
        (
            "accuracy",
            "Accuracy" if measure == "accuracy" else "KL(teacher‖student) along own answers",
            figures.accuracy(readings, task, name, measure),
            "Mean and 95 % interval over seeds; small dots are seeds.",
            False,
        ),
        (
            "epochs",
            "At the same number of epochs" if over == "progress" else "At the same number of optimiser steps",
            figures.curves(readings, task, name, over) if measure == "accuracy" else None,
            "",
            False,
        ),
        (
            "seconds",
            "At the same time",
            figures.curves(readings, task, name, "seconds") if timed and measure == "accuracy" else None,
            "",
            False,
        ),
        (
            "positions",
            "KL(teacher‖student) along the answer",
            figures.positions(readings, task, name),
            "Rising curves are errors that build on errors.",
            False,
        ),
        (
            "drift",
            "How far from the start, how near to the teacher",
            figures.drift(readings, task, name),
            "Each dot is a seed, each ring an arm's mean; along the student's own answers. Along the root of the drift "
            "arXiv:2609.32722 finds scores to lie on a line; R² is that of the dots.",
            False,
        ),
        ("zones", "Zones of Δ-IFD", figures.zones(readings, task, name), "", False),
    ]
    if name in ("baselines", "sync"):
        made.append(("lag", "Lag", figures.lags(readings, task, name), "Dashed: the paper's near-policy bound.", False))
    if name in ("filter", "sync"):
        made.append(("loss", "Loss", figures.losses(readings, task, name), "First seed.", False))
    if name == "speed":
        made.append(("stages", "Where the time goes", figures.stages(readings, task, name), "", True))
    return [
        Picture(f"{name}-{task}-{key}", f"{title}, {task}", svg, caption, wide)
        for key, title, svg, caption, wide in made
        if svg is not None
    ]


def headline(found: list[Section]) -> dict[str, int]:
    """Verdicts by outcome, over all sections."""
    out: dict[str, int] = {}
    for s in found:
        for v in s.verdicts:
            out[v.outcome] = out.get(v.outcome, 0) + 1
    return out


def gain_text(v: Verdict) -> str:
    """The gain of a verdict with its unit."""
    if v.gain is None:
        return "–"
    measure = v.claim.measure
    if measure == "seconds":
        return f"{_factor(v.gain)} faster"
    if measure in ("accuracy", "gain"):
        return f"{with_interval(v.gain, _points, sign=True)} points"
    if measure == "exaccerr":
        return f"{with_interval(v.gain, _whole, sign=True)} % less"
    return f"{with_interval(v.gain, _nats, sign=True)} nats less"
