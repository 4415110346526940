"""Tables of a run's report as headings and cells; the page lays them out, stacked on a phone."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from npd_ascend.config.stages import title
from npd_ascend.report.captions import complete_time
from npd_ascend.report.collect import Run, StageTime
from npd_ascend.report.numbers import MISSING, duration, number, percent, size
from npd_ascend.report.paper import TIME, ZONES

_ZONES = ("proximal", "degenerate", "disconnect", "undefined")


@dataclass
class Table:
    """A table.

    Attributes:
        head: headings; the first column names the row.
        rows: cells; text is escaped by the page, Markup is not.
        text: indices of columns that are text rather than numbers, beside the first.
        pale: indices of rows that are the paper's.
    """

    head: list[str]
    rows: list[list[str]]
    text: set[int] = field(default_factory=set)
    pale: set[int] = field(default_factory=set)


def evaluations(run: Run) -> Table | None:
    """Accuracy by checkpoint."""
    if not run.evaluations:
        return None
    ks = list(dict.fromkeys(k for e in run.evaluations for k in e.pass_at))
    return Table(
        [
            "checkpoint",
            "epoch",
            "right",
            "accuracy",
            "95 % interval",
            "cut off",
            "tokens",
            *(f"pass@{k}" if k.isdigit() else k for k in ks),
        ],
        [
            [
                e.name,
                number(e.progress),
                f"{number(e.correct)} / {number(e.n)}",
                percent(e.accuracy),
                f"{100 * e.interval[0]:.1f}–{percent(e.interval[1])}",
                percent(e.truncated),
                number(e.mean_tokens),
                *(percent(e.pass_at.get(k)) for k in ks),
            ]
            for e in run.evaluations
        ],
    )


def selection(run: Run) -> Table | None:
    """Decisions by generation, the paper's beside them where its rule was used."""
    found = [(g.index, g.selection) for g in run.generations if g.selection]
    if not found:
        return None
    rows = [
        [
            str(i),
            s.filter,
            number(s.samples),
            number(s.kept),
            percent(s.keep_rate, 2),
            *(percent(s.share(z), 2) for z in _ZONES),
            ", ".join(f"{r} {number(n)}" for r, n in s.reasons.items() if r != "kept") or MISSING,
        ]
        for i, s in found
    ]
    paper = (
        [
            [name, "delta_ifd", "", "", percent(z["proximal"], 2), *(percent(z[k], 2) for k in _ZONES[:3]), "", ""]
            for name, z in ZONES.items()
        ]
        if all(s.rule_as_paper for _, s in found)
        else []
    )
    return Table(
        ["generation", "filter", "answers", "kept", "keep rate", *_ZONES, "left out because"],
        rows + paper,
        {1, 9},
        set(range(len(rows), len(rows + paper))),
    )


def rewards(run: Run) -> Table | None:
    """Rewards, groups and what training did with them, by generation."""
    found = [(g, g.rewards) for g in run.rewarded if g.rewards]
    if not found:
        return None
    names = list(found[-1][1].parts)
    names = names if len(names) > 1 else []

    def step(generation: int, key: str, which: int) -> float | None:
        values = run.steps_of(generation, key)
        return max(values[which], 0.0) if values else None  # next to nothing may be below it by rounding

    def share(generation: int, key: str) -> str:
        values = run.steps_of(generation, key)
        return percent(sum(values) / len(values), 2) if values else MISSING

    rows = [
        [
            str(g.index),
            number(r.mean),
            *(number(r.parts.get(name)) for name in names),
            number(r.groups),
            percent(r.equal),
            number(g.selection.kept if g.selection else None),
            number(r.entropy),
            number(step(g.index, "policy_k3", 0)),
            number(step(g.index, "policy_k3", -1)),
            share(g.index, "policy_clip_share"),
            share(g.index, "policy_mask_share"),
        ]
        for g, r in found
    ]
    head = ["generation", "reward", *names, "groups", "alike", "trained on", "entropy"]
    return Table([*head, "k3, first step", "k3, last step", "clipped", "masked"], rows)


def rollouts(run: Run) -> Table | None:
    """Answers by generation."""
    rows = [
        [
            str(g.index),
            number(r.samples),
            number(r.lengths.mean() if r.lengths.size else None),
            number(int(r.lengths.max()) if r.lengths.size else None),
            percent(r.truncated),
            percent(r.loops),
            percent(r.identical),
        ]
        for g in run.generations
        if (r := g.rollouts)
    ]
    return (
        Table(["generation", "answers", "mean tokens", "longest", "truncated", "looping", "identical"], rows)
        if rows
        else None
    )


def stored(run: Run) -> Table | None:
    """The teacher's annotation on disk by generation."""
    rows = [
        [
            str(g.index),
            number(s.tokens),
            size(s.bytes),
            f"{s.bytes_per_token:.1f}" if s.tokens else MISSING,
            percent(s.mass, 2),
            number(g.entropy),
        ]
        for g in run.generations
        if (s := g.store)
    ]
    return (
        Table(["generation", "response tokens", "size", "bytes/token", "top-k mass", "entropy"], rows) if rows else None
    )


def packing(run: Run) -> Table | None:
    """Rows by generation."""
    rows = [
        [
            str(g.index),
            number(p.epochs),
            number(p.rows),
            number(p.least_rows),
            number(p.row_length),
            number(p.tokens),
            percent(p.density, 2),
            percent(1 - p.density, 2),
            number(p.samples),
            number(p.dropped),
            number(p.truncated),
            MISSING if p.imbalance is None else f"{percent(p.imbalance, 2)} over {p.ranks or '?'} ranks",
        ]
        for g in run.generations
        if (p := g.packing)
    ]
    return (
        Table(
            [
                "generation",
                "epochs",
                "rows an epoch",
                "least possible",
                "row length",
                "tokens",
                "density",
                "padding",
                "samples",
                "left out",
                "cut",
                "cost imbalance",
            ],
            rows,
        )
        if rows
        else None
    )


def time(run: Run) -> Table | None:
    """Time by stage: the paper's stages with both shares where the run has all of them, then the others."""
    times = {t.stage: t for t in run.times()}
    if not times:
        return None
    compared = TIME if complete_time(run) else ()
    total = sum(times[stage].seconds for stage, *_ in compared) or sum(t.seconds for t in times.values())
    named: list[tuple[str, StageTime, float | None]] = [(name, times[stage], share) for stage, name, share in compared]
    named += [(title(s).capitalize(), t, None) for s, t in times.items() if s not in {x[0] for x in compared}]
    rows = []
    for name, t, share in named:
        row = [
            name,
            duration(t.seconds),
            duration(t.seconds - t.busy) if t.busy < t.seconds else MISSING,
            duration(t.compiling) if t.compiling else MISSING,
        ]
        if compared:
            row += [_bar(t.seconds / total if share is not None and total else None, "c1"), _bar(share, "c5")]
        else:
            row.append(_bar(t.seconds / total if total else None, "c1"))
        rows.append(
            [*row, number(t.tokens) if t.tokens else MISSING, number(t.tokens_per_second), number(t.samples_per_second)]
        )
    shares = ["share, this run", "share, paper (Table 19)"] if compared else ["share"]
    return Table(
        ["stage", "time", "of it start-up", "of that compiling", *shares, "tokens", "tokens/s", "samples/s"], rows
    )


def _bar(share: float | None, colour: str) -> str:
    if share is None:
        return MISSING
    return Markup('<span class="bar"><i style="width:{:.2f}%;background:var(--{})"></i></span>{}').format(
        100 * share, colour, percent(share, 2)
    )
