"""The report's figures, each from plain data to inline SVG; None when there is nothing to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from npd_ascend.config.stages import STAGES, title
from npd_ascend.report import svg
from npd_ascend.report.collect import Run, series
from npd_ascend.report.numbers import duration
from npd_ascend.report.paper import ZONES
from npd_ascend.report.svg import C1, C2, C3, C4, C5, GRID, INK, MUTED, SERIES

_PERCENT = FuncFormatter(lambda v, _: f"{100 * v:g} %")
_SHORT = FuncFormatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 10000 else f"{v:g}")
_ZONE_COLOURS = {"degenerate": C2, "proximal": C1, "disconnect": C4, "undefined": C5}
_MAX_CURVES = 3
_MAX_BARS = 12
_MAX_MARKS = 30
_LONG_PAUSE_S = 60.0


def accuracy(run: Run) -> Markup | None:
    """Accuracy with its interval, at the start, each refresh and the end, over epochs."""
    points = [e for e in run.evaluations if e.progress is not None]
    if not points:
        return None
    with svg.style():
        fig = svg.figure()
        ax = fig.subplots()
        x = np.array([e.progress for e in points], float)
        y = np.array([e.accuracy for e in points])
        low, high = np.array([e.interval for e in points]).T
        ax.fill_between(x, low, high, color=C1, alpha=0.15, linewidth=0)
        ax.vlines(x, low, high, color=C1, linewidth=1.2)
        ax.plot(x, y, color=C1, marker="o", markersize=5)
        for i, e in enumerate(points):
            ends = "left" if i == 0 and len(points) > 1 else "right" if i == len(points) - 1 and i else "center"
            ax.annotate(
                f"{100 * e.accuracy:.1f} %",
                (x[i], high[i]),
                xytext=(0, 5),
                textcoords="offset points",
                ha=ends,
                color=INK,
                fontweight="bold",
            )
            ax.annotate(
                e.name, (x[i], low[i]), xytext=(0, -11), textcoords="offset points", ha=ends, color=MUTED, fontsize=7.5
            )
        ax.margins(x=0.06, y=0.25)
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=bool(x.max() >= 2)))
        ax.set_xlabel("epochs of training")
        return svg.to_svg(fig, "Accuracy over the run")


def loss(run: Run) -> Markup | None:
    """Loss and its parts over optimiser steps: CE, all divergences together, and every other term."""
    names = {"loss": "total", "kd": "divergence from teacher", "ce": "cross-entropy"}
    names |= {key: key.removeprefix("term_").replace("_", " ") for key in run.terms}
    colours = (INK, C1, C2, C3, C4, C5)
    parts = [
        (name, key, colours[i % len(colours)])
        for i, (key, name) in enumerate(names.items())
        if np.any(series(run.train, key)[1])  # 0 throughout: no part of this loss
    ]
    if not parts:
        return None
    with svg.style():
        fig = svg.figure()
        ax = fig.subplots()
        for name, key, colour in parts:
            svg.line(ax, *series(run.train, key), colour, name)
        _syncs(ax, run)
        svg.legend(ax)
        ax.set_xlabel("optimiser step")
        ax.set_ylabel("nats a token")
        ax.xaxis.set_major_formatter(_SHORT)
        return svg.to_svg(fig, "Loss and its parts over the steps")


def optimiser(run: Run) -> Markup | None:
    """Gradient norm (with the clipping bound) above the learning rate."""
    norm, rate = series(run.train, "grad_norm"), series(run.train, "lr")
    if not len(norm[0]) and not len(rate[0]):
        return None
    with svg.style():
        fig = svg.figure()
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        svg.line(top, *norm, C3)
        top.set_title("gradient norm before clipping")
        if run.config:
            top.axhline(run.config.train.clip, color=C4, linewidth=1, linestyle=(0, (5, 2)))
            top.annotate(
                "clip",
                (1, run.config.train.clip),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                color=C4,
                fontsize=7.5,
            )
        svg.line(bottom, *rate, C5)
        bottom.set_title("learning rate")
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0e}" if v else "0"))
        bottom.yaxis.set_major_locator(MaxNLocator(3))
        for ax in (top, bottom):
            ax.set_ylim(bottom=0)
        _syncs(top, run)
        bottom.set_xlabel("optimiser step")
        bottom.xaxis.set_major_formatter(_SHORT)
        return svg.to_svg(fig, "Gradient norm and learning rate over the steps")


def reward(run: Run) -> Markup | None:
    """Mean reward and its parts by generation, above the share of groups that teach nothing."""
    found = run.rewarded
    if not found:
        return None
    x = np.array([g.index for g in found], float)
    rewards = [g.rewards for g in found if g.rewards]
    names = list(rewards[-1].parts)
    with svg.style():
        fig = svg.figure()
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        if len(names) > 1:
            for name, colour in zip(names, (C2, C3, C4, C5) * len(names), strict=False):
                svg.line(top, x, np.array([r.parts.get(name, np.nan) for r in rewards]), colour, name)
        svg.line(top, x, np.array([r.mean for r in rewards]), C1, "reward")
        high, low = (
            np.array([getattr(r, f"equal_{side}") / max(r.groups, 1) for r in rewards]) for side in ("high", "low")
        )
        bottom.fill_between(x, 0, low, color=C4, alpha=0.5, linewidth=0, label="all alike, below the mean")
        bottom.fill_between(x, low, low + high, color=C3, alpha=0.5, linewidth=0, label="all alike, not below")
        bottom.set_ylim(0, 1)
        bottom.yaxis.set_major_formatter(_PERCENT)
        bottom.set_title("groups that teach nothing")
        bottom.set_xlabel("generation")
        bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        svg.legend(top, bottom)
        return svg.to_svg(fig, "Reward by generation")


def policy(run: Run) -> Markup | None:
    """How far the student is from the policy that wrote its data, and what clip and mask take, over steps."""
    far = [(name, key, c) for name, key, c in (("KL (k3)", "policy_k3", C1), ("mean |log ρ|", "policy_gap", C2))]
    taken = [("clipped", "policy_clip_share", C3), ("masked", "policy_mask_share", C4)]
    found = {key: series(run.train, key) for _, key, _ in (*far, *taken)}
    if not any(len(x) for x, _ in found.values()):
        return None
    with svg.style():
        fig = svg.figure()
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for ax, curves in ((top, far), (bottom, taken)):
            for name, key, colour in curves:
                if len(found[key][0]):
                    svg.line(ax, *found[key], colour, name)
            ax.set_ylim(bottom=0)
        svg.legend(top, bottom)
        top.set_ylabel("nats a token")
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
        bottom.set_title("tokens whose gradient is bounded or left out")
        _syncs(top, run)
        bottom.set_xlabel("optimiser step")
        bottom.xaxis.set_major_formatter(_SHORT)
        return svg.to_svg(fig, "Ratio of student and generator over the steps")


def exploration(run: Run) -> Markup | None:
    """Entropy of the policy and length of its answers by generation."""
    found = [g for g in run.rewarded if g.rewards and g.rewards.entropy is not None and g.rollouts]
    if not found:
        return None
    x = np.array([g.index for g in found], float)
    curves = (
        ("entropy, nats a token", np.array([g.rewards.entropy for g in found if g.rewards], float), C1),
        ("mean tokens of an answer", np.array([g.rollouts.lengths.mean() for g in found if g.rollouts]), C2),
    )

    def draw(width: float) -> Markup:
        beside = width > svg.HALF
        with svg.style():
            fig = svg.figure(width)
            plots = fig.subplots(1 if beside else 2, 2 if beside else 1, sharex=True, squeeze=False).flat
            for ax, (name, y, colour) in zip(plots, curves, strict=True):
                svg.line(ax, x, y, colour)
                ax.set_title(name)
                ax.set_ylim(bottom=0)
                ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
                if beside or colour == C2:
                    ax.set_xlabel("generation")
            return svg.to_svg(fig, "Entropy and length by generation")

    return svg.adaptive(draw)


def lag(run: Run) -> Markup | None:
    """KL between the current student and the generator of its data, both directions, over steps."""
    # A refresh starts a new curve: the generator is another one from there on.
    generations = sorted({r.get("generation", 0) for r in run.lag})
    curves = [
        (
            None if g != generations[0] else name,
            series([r for r in run.lag if r.get("generation", 0) == g], key),
            colour,
        )
        for name, key, colour in (("KL(current‖generator)", "forward", C1), ("KL(generator‖current)", "reverse", C2))
        for g in generations
    ]
    if not any(len(x) for _, (x, _), _ in curves):
        return None

    def draw(width: float) -> Markup:
        with svg.style():
            fig = svg.figure(width)
            ax = fig.subplots()
            for name, (x, y), colour in curves:
                svg.line(ax, x, y, colour, name)
            bound = run.lag_bound
            ax.axhline(bound, color=C4, linewidth=1, linestyle=(0, (5, 2)))
            ax.annotate(
                f"near-policy bound {bound:g}",
                (0, bound),
                xycoords=("axes fraction", "data"),
                xytext=(2, 2),
                textcoords="offset points",
                color=C4,
                fontsize=7.5,
            )
            ax.set_ylim(bottom=0)
            _syncs(ax, run)
            svg.legend(ax)
            ax.set_xlabel("optimiser step")
            ax.set_ylabel("nats a token")
            ax.xaxis.set_major_formatter(_SHORT)
            return svg.to_svg(fig, "Lag between the student and the generator of its data")

    return svg.adaptive(draw)


def zones(run: Run) -> Markup | None:
    """Share of each zone by generation, the paper's beside them."""
    found = [(f"generation {g.index}", g.selection) for g in run.generations if g.selection and g.selection.scored]
    if not found:
        return None
    rows = [(name, {z: s.share(z) for z in _ZONE_COLOURS}) for name, s in found[-_MAX_BARS:]]
    paper = ZONES if all(s.zones_as_paper for _, s in found) else {}
    rows += [(name, dict(shares)) for name, shares in paper.items()]
    with svg.style():
        fig = svg.figure(height=0.8 + 0.3 * len(rows))
        ax = fig.subplots()
        at = np.arange(len(rows))[::-1] - np.where(np.arange(len(rows)) >= len(rows) - len(paper), 0.25, 0.0)
        left = np.zeros(len(rows))
        for zone, colour in _ZONE_COLOURS.items():
            width = np.array([shares.get(zone, 0.0) for _, shares in rows])
            if zone == "undefined" and not width.any():
                continue
            pale = [0.45 if name in paper else 1.0 for name, _ in rows]
            for i in range(len(rows)):
                ax.barh(
                    at[i],
                    width[i],
                    0.68,
                    left[i],
                    color=colour,
                    alpha=pale[i],
                    linewidth=0,
                    label=zone if i == 0 else None,
                )
            left += width
        ax.set_yticks(at, [name for name, _ in rows], color=INK)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.grid(False)
        svg.legend(ax)
        return svg.to_svg(fig, "Zones by generation")


def delta(run: Run) -> Markup | None:
    """Histogram of Δ-IFD, first and latest generation, with the bounds of the filter."""
    found = [(g.index, g.selection) for g in run.generations if g.selection and len(g.selection.delta)]
    if not found:
        return None
    shown = found if len(found) <= _MAX_CURVES else [found[0], *found[-(_MAX_CURVES - 1) :]]
    bounds = [b for b in (shown[-1][1].lower, shown[-1][1].upper) if b is not None]
    values = np.concatenate([s.delta for _, s in shown])
    low, high = np.quantile(values, [0.002, 0.998])
    low, high = min([low, *bounds]), max([high, *bounds])
    pad = 0.06 * (high - low) or 0.1
    with svg.style():
        fig = svg.figure()
        ax = fig.subplots()
        for (index, s), colour in zip(shown, SERIES, strict=False):
            share, edges = svg.bars_of(s.delta, low - pad, high + pad, 60)
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25, linewidth=0)
            ax.stairs(share, edges, color=colour, linewidth=1.2, label=f"generation {index}")
        for bound, name, side in ((shown[-1][1].lower, "lower", "right"), (shown[-1][1].upper, "upper", "left")):
            if bound is not None:
                ax.axvline(bound, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
                ax.annotate(
                    f"{name} {bound:.3g}",
                    (bound, 1),
                    xycoords=("data", "axes fraction"),
                    va="top",
                    xytext=(-3 if side == "right" else 3, 0),
                    textcoords="offset points",
                    ha=side,
                    color=MUTED,
                    fontsize=7.5,
                )
        ax.margins(y=0.15)
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("Δ-IFD = IFD(teacher) − IFD(student)")
        ax.set_ylabel("samples")
        svg.legend(ax)
        return svg.to_svg(fig, "Histogram of Δ-IFD")


def lengths(run: Run) -> Markup | None:
    """Histogram of response lengths in tokens, first and latest generation."""
    found = [(g.index, g.rollouts) for g in run.generations if g.rollouts and len(g.rollouts.lengths)]
    if not found:
        return None
    shown = found if len(found) <= _MAX_CURVES else [found[0], *found[-(_MAX_CURVES - 1) :]]
    longest = max(int(r.lengths.max()) for _, r in shown)
    bins = min(longest + 1, 50)
    with svg.style():
        fig = svg.figure()
        ax = fig.subplots()
        for (index, r), colour in zip(shown, SERIES, strict=False):
            share, edges = svg.bars_of(r.lengths, -0.5, longest + 0.5, bins)
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25, linewidth=0)
            ax.stairs(share, edges, color=colour, linewidth=1.2, label=f"generation {index}")
            ax.axvline(float(r.lengths.mean()), color=colour, linewidth=1, linestyle=(0, (1, 2)))
        ax.set_xlim(-0.5, longest + 0.5)
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(_SHORT)
        ax.set_xlabel("response tokens (dotted: mean)")
        ax.set_ylabel("samples")
        svg.legend(ax)
        return svg.to_svg(fig, "Histogram of response lengths")


def timeline(run: Run) -> Markup | None:
    """When each stage was at work; overlapping bars ran at the same time, long pauses are cut out and marked."""
    rows = [r for r in run.stage if "seconds" in r and "time" in r]
    if not rows:
        return None
    shift, pauses, end = _without_pauses([(r["time"] - r["seconds"], r["time"]) for r in rows])
    minutes = end > 300
    unit = 60.0 if minutes else 1.0
    stages = [s for s in STAGES if any(r.get("stage") == s for r in rows)]
    stages += sorted({str(r.get("stage")) for r in rows} - set(stages))

    def draw(width: float) -> Markup:
        with svg.style():
            fig = svg.figure(width, 0.75 + 0.26 * len(stages))
            ax = fig.subplots()
            for r, moved in zip(rows, shift, strict=True):
                y = len(stages) - 1 - stages.index(str(r.get("stage")))
                ax.barh(
                    y,
                    r["seconds"] / unit,
                    0.62,
                    (r["time"] - r["seconds"] - moved) / unit,
                    linewidth=0,
                    color=_colour(r),
                )
            svg.mark(ax, [at / unit for at, _ in pauses], [f"pause {duration(s)}" for _, s in pauses])
            for index in sorted({int(r["generation"]) for r in rows if _colour(r) != C5})[: len(SERIES) - 1]:
                ax.barh(0, 0, color=SERIES[index % (len(SERIES) - 1)], label=f"generation {index}")
            ax.set_yticks(range(len(stages)), [title(s) for s in reversed(stages)], color=INK)
            ax.grid(True, axis="x", color=GRID)
            ax.grid(False, axis="y")
            ax.set_xlim(left=0)
            ax.set_xlabel(
                ("minutes" if minutes else "seconds") + " since the start" + (", without pauses" if pauses else "")
            )
            svg.legend(ax)
            return svg.to_svg(fig, "When each stage was at work")

    return svg.adaptive(draw)


def _without_pauses(spans: list[tuple[float, float]]) -> tuple[list[float], list[tuple[float, float]], float]:
    """Takes out the times at which nothing ran for long: a run resumed next morning would otherwise be two specks.

    Args:
        spans: (start, end) of each bar, seconds.

    Returns:
        What to subtract from each span's times; (place on the new axis, seconds) of each pause; the new end.
    """
    busy = sum(b - a for a, b in spans)
    shift = [0.0] * len(spans)
    pauses: list[tuple[float, float]] = []
    order = sorted(range(len(spans)), key=lambda i: spans[i])
    moved = end = spans[order[0]][0]
    for i in order:
        start, stop = spans[i]
        if start - end > max(_LONG_PAUSE_S, 0.1 * busy):
            pauses.append((end - moved, start - end))
            moved += start - end
        shift[i], end = moved, max(end, stop)
    return shift, pauses, end - moved


def _colour(row: dict[str, Any]) -> str:
    """Colour of a stage row by generation; what belongs to none is grey."""
    index = row.get("generation")
    if row.get("stage") in ("prepare", "evaluate") or index is None or index < 0:
        return C5
    return SERIES[int(index) % (len(SERIES) - 1)]


def _syncs(ax: Axes, run: Run) -> None:
    at = [(float(r["step"]), f"refresh {r.get('generation', '')}".strip()) for r in run.refreshes if "step" in r]
    if len(at) <= _MAX_MARKS:
        svg.mark(ax, [x for x, _ in at], [label for _, label in at])
