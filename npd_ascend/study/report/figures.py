"""Figures of a study, each from its readings to inline SVG in the look of a run's report; None: nothing to draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from npd_ascend.report import svg
from npd_ascend.report.paper import DELTA, LAG, ZONES
from npd_ascend.report.svg import C1, C2, C4, C5, INK, MUTED, SERIES
from npd_ascend.study.report.compare import TOTAL, values
from npd_ascend.study.report.readings import Readings
from npd_ascend.study.statistics import over_seeds

_PERCENT = FuncFormatter(lambda v, _: f"{100 * v:g} %")
_DASHES: tuple[object, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)))
_MARKS = ("o", "s", "^")
_ZONES = {"below": ("degenerate", C2), "inside": ("proximal", C1), "above": ("disconnect", C4),
          "undefined": ("undefined", C5)}  # fmt: skip
_LIGHT = (
    "--bg:#fff;--ink:#1a1e23;--muted:#626a74;--grid:#e3e5e8;--c1:#0067a8;--c2:#d97700;--c3:#008763;--c4:#b5306b;"
    "--c5:#8b929b"
)


def standalone(figure: str) -> str:
    """The figure as an SVG file: light colours, white ground."""
    figure = figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")]  # of an adaptive one, the wide one
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure)
    assert size is not None
    ground = (
        f'<style>svg{{{_LIGHT};font-family:sans-serif}}</style><rect width="{size[1]}" height="{size[2]}" fill="#fff"/>'
    )
    return (
        figure.replace(
            "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[1]}" height="{size[2]}" ', 1
        ).replace(">", f">{ground}", 1)
        + "\n"
    )


def accuracy(readings: Readings, task: str, group: str, measure: str = "accuracy") -> Markup | None:
    """One mark an arm with its interval over seeds, and each seed as a small dot."""
    rows = [(arm, list(values(readings, task, group, arm, measure).values())) for arm in readings.arms(task, group)]
    rows = [(arm, x) for arm, x in rows if x]
    if len(rows) < 2:
        return None
    with svg.style():
        fig = svg.figure(height=0.7 + 0.27 * len(rows))
        ax = fig.subplots()
        for y, (_, x) in enumerate(rows):
            e = over_seeds(x)
            if e.known:
                ax.hlines(y, e.low, e.high, color=C1, linewidth=1.4)
            ax.plot(x, np.full(len(x), y), "o", color=MUTED, markersize=2.5, alpha=0.7, linewidth=0)
            ax.plot([e.mean], [y], "o", color=C1, markersize=6)
        ax.set_yticks(range(len(rows)), [arm for arm, _ in rows], color=INK)
        ax.invert_yaxis()
        ax.grid(True, axis="x")
        if measure == "accuracy":
            ax.xaxis.set_major_formatter(_PERCENT)
            every = [v for _, x in rows for v in x]
            ax.set_xlim(max(-0.02, min(every) - 0.1), min(1.02, max(every) + 0.1))
        return svg.to_svg(fig, f"{measure} of the arms of {group} on {task}")


_ABSCISSA = {"seconds": "seconds, everything waited for included", "progress": "epochs", "step": "optimiser steps"}


def curves(readings: Readings, task: str, group: str, x: str) -> Markup | None:
    """Accuracy over ``seconds``, ``progress`` or ``step``: means over seeds, of arms measured twice or more."""

    def draw(ax: Axes, style: Callable[[int], dict[str, Any]]) -> int:
        drawn = 0
        for i, arm in enumerate(readings.arms(task, group)):
            series = [s for s in readings.series(task, group, arm, "eval").values() if len(s.rows) > 1]
            n = min((len(s.rows) for s in series), default=0)
            if n < 2:
                continue
            at, y = (np.mean([s.column(k)[:n] for s in series], 0) for k in (x, "accuracy"))
            ax.plot(at, y, marker="o", markersize=2.8, label=arm, **style(i))
            drawn += 1
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.set_xlabel(_ABSCISSA[x])
        return drawn

    return _lines(draw, f"Accuracy over {x}, {group} on {task}")


def losses(readings: Readings, task: str, group: str) -> Markup | None:
    """Loss over steps, the first seed of each arm."""

    def draw(ax: Axes, style: Callable[[int], dict[str, Any]]) -> int:
        drawn = 0
        for i, arm in enumerate(readings.arms(task, group)):
            for s in list(readings.series(task, group, arm, "train").values())[:1]:
                steps, y = s.column("step"), s.column("loss")
                if np.isfinite(y).sum() > 1:
                    ax.plot(steps, y, label=arm, **{**style(i), "linewidth": 0.9})
                    drawn += 1
        ax.set_xlabel("optimiser step")
        ax.set_ylabel("loss, nats a token")
        return drawn

    return _lines(draw, f"Loss over steps, {group} on {task}")


def lags(readings: Readings, task: str, group: str) -> Markup | None:
    """KL(current‖generator) over epochs, means over seeds."""

    def draw(ax: Axes, style: Callable[[int], dict[str, Any]]) -> int:
        drawn = 0
        for i, arm in enumerate(readings.arms(task, group)):
            series = list(readings.series(task, group, arm, "lag").values())
            n = min((len(s.rows) for s in series), default=0)
            if n < 2:
                continue
            at, y = (np.mean([s.column(k)[:n] for s in series], 0) for k in ("progress", "forward"))
            ax.plot(at, y, label=arm, **style(i))
            drawn += 1
        ax.axhline(LAG, color=C4, linewidth=1, linestyle=(0, (5, 2)))
        ax.set_xlabel("epochs")
        ax.set_ylabel("nats a token")
        ax.set_ylim(bottom=0)
        return drawn

    return _lines(draw, f"Lag over epochs, {group} on {task}")


def positions(readings: Readings, task: str, group: str) -> Markup | None:
    """KL(teacher‖student) by place in the student's own answers, means over seeds."""

    def draw(ax: Axes, style: Callable[[int], dict[str, Any]]) -> int:
        drawn = 0
        labels: list[str] = []
        for i, arm in enumerate(readings.arms(task, group)):
            rows = [r for r in readings.last(task, group, arm, "exposure").values() if r.get("kl_ts_by_position")]
            n = min((len(r["kl_ts_by_position"]) for r in rows), default=0)
            if n < 2:
                continue
            y = np.array([[np.nan if v is None else v for v in r["kl_ts_by_position"][:n]] for r in rows], float)
            ax.plot(range(n), y.mean(0), marker="o", markersize=2.8, label=arm, **style(i))
            labels = max(labels, rows[0]["buckets"][:n], key=len)
            drawn += 1
        ax.set_xticks(range(len(labels)), labels)
        ax.set_xlabel("token of the answer")
        ax.set_ylabel("nats a token")
        ax.set_ylim(bottom=0)
        return drawn

    return _lines(draw, f"KL(teacher‖student) by position, {group} on {task}")


def drift(readings: Readings, task: str, group: str) -> Markup | None:
    """KL(teacher‖student) over √KL(student‖start) of all arms and seeds, with the line through them."""
    points = {}
    for arm in readings.arms(task, group):
        x, y = (values(readings, task, group, arm, measure) for measure in ("drift", "kl_ts"))
        if seeds := sorted(set(x) & set(y)):
            points[arm] = [(x[s] ** 0.5, y[s]) for s in seeds]
    if len(points) < 2:
        return None

    def draw(ax: Axes, style: Callable[[int], dict[str, Any]]) -> int:
        every = np.array([xy for p in points.values() for xy in p])
        for i, (arm, p) in enumerate(points.items()):
            colour = style(i)["color"]
            marker = _MARKS[i // len(SERIES) % len(_MARKS)]
            ax.plot(*np.transpose(p), marker, color=colour, markersize=3, alpha=0.7, linewidth=0)
            ax.plot(*np.mean(p, 0), marker, color=colour, markersize=8, markerfacecolor="none", linewidth=0, label=arm)
        if len(every) > 2 and np.ptp(every[:, 0]) > 0:
            slope, offset = np.polyfit(every[:, 0], every[:, 1], 1)
            ends = np.array([every[:, 0].min(), every[:, 0].max()])
            r2 = float(np.corrcoef(every.T)[0, 1] ** 2)
            ax.plot(ends, slope * ends + offset, color=MUTED, linewidth=1, label=f"line, R² {r2:.2f}")
        ax.set_xlabel("√KL(student‖start)")
        ax.set_ylabel("KL(teacher‖student), nats a token")
        return len(points)

    return _lines(draw, f"KL to the teacher over the root of the drift, {group} on {task}")


def by_stage(readings: Readings, task: str, group: str, arm: str) -> dict[str, float]:
    """Seconds of each stage of an arm, means over seeds."""
    found: dict[str, list[float]] = {}
    for s in readings.series(task, group, arm, "time").values():
        for r in s.rows:
            if r.get("stage") != TOTAL and not r.get("aside"):
                found.setdefault(str(r.get("stage")), []).append(float(r.get("seconds") or 0))
    return {k: float(np.mean(v)) for k, v in found.items()}


def stages(readings: Readings, task: str, group: str) -> Markup | None:
    """Where each arm's time goes, seconds, means over seeds."""
    rows = [(arm, parts) for arm in readings.arms(task, group) if (parts := by_stage(readings, task, group, arm))]
    if not rows:
        return None
    top = max(sum(parts.values()) for _, parts in rows)
    names = sorted(
        {k for _, parts in rows for k, v in parts.items() if v > 0.01 * top},
        key=lambda k: -sum(parts.get(k, 0) for _, parts in rows),
    )

    def draw(width: float) -> Markup:
        with svg.style():
            fig = svg.figure(width, 0.9 + 0.27 * len(rows))
            ax = fig.subplots()
            left = np.zeros(len(rows))
            for i, name in enumerate(names):
                seconds = np.array([parts.get(name, 0.0) for _, parts in rows])
                ax.barh(
                    range(len(rows)),
                    seconds,
                    0.68,
                    left,
                    color=SERIES[i % 5],
                    alpha=1 if i < 5 else 0.5,
                    linewidth=0,
                    label=name.replace("_", " "),
                )
                left += seconds
            ax.set_yticks(range(len(rows)), [arm for arm, _ in rows], color=INK)
            ax.invert_yaxis()
            ax.grid(True, axis="x")
            ax.grid(False, axis="y")
            ax.set_xlabel("seconds")
            svg.legend(ax)
            return svg.to_svg(fig, f"Time by stage, {group} on {task}")

    return svg.adaptive(draw)


def zones(readings: Readings, task: str, group: str) -> Markup | None:
    """Shares of the zones by arm and generation, means over seeds, the paper's below where zones end at its δ."""
    rows: list[tuple[str, dict[str, float]]] = []
    deltas: set[float] = set()
    for arm in readings.arms(task, group):
        found: dict[int, list[dict[str, Any]]] = {}
        for s in readings.series(task, group, arm, "zones").values():
            for r in s.rows:
                if r.get("inside") is not None:
                    found.setdefault(int(r.get("generation") or 0), []).append(r)
                    deltas.add(r.get("zone_upper", DELTA))
        rows += [
            (f"{arm}, generation {g}", {k: float(np.mean([r.get(k) or 0 for r in part])) for k in _ZONES})
            for g, part in sorted(found.items())
        ]
    if not rows:
        return None
    rows = [(name, shares) for name, shares in rows if shares["undefined"] < 1]  # scored at all
    if not rows:
        return None
    if all(delta == DELTA for delta in deltas):
        rows += [(n, {k: shares.get(zone, 0.0) for k, (zone, _) in _ZONES.items()}) for n, shares in ZONES.items()]
    with svg.style():
        fig = svg.figure(height=0.8 + 0.25 * len(rows))
        ax = fig.subplots()
        left = np.zeros(len(rows))
        for key, (label, colour) in _ZONES.items():
            width = np.array([shares.get(key, 0.0) for _, shares in rows])
            if width.any():
                ax.barh(range(len(rows)), width, 0.68, left, color=colour, linewidth=0, label=label)
            left += width
        ax.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.grid(False)
        svg.legend(ax)
        return svg.to_svg(fig, f"Zones, {group} on {task}")


def _lines(draw: Callable[[Axes, Callable[[int], dict[str, Any]]], int], title: str) -> Markup | None:
    """A plot of labelled lines; None when ``draw`` draws none."""
    with svg.style():
        fig = svg.figure(height=2.9)
        ax = fig.subplots()
        if not draw(ax, _style):
            return None
        svg.legend(ax)
        return svg.to_svg(fig, title)


def _style(i: int) -> dict[str, Any]:
    return {"color": _colour(i, SERIES), "linestyle": _DASHES[i // len(SERIES) % len(_DASHES)]}


def _colour(i: int, of: Sequence[str]) -> str:
    return of[i % len(of)]
