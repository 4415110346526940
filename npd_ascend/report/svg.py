"""Matplotlib figures as inline SVG that follows the page: its colours, its font, its dark mode."""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from npd_ascend.arrays import Array

# Stand-ins that become CSS variables, so that one SVG serves light and dark.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
C1, C2, C3, C4, C5 = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", C1: "c1", C2: "c2", C3: "c3", C4: "c4", C5: "c5"}
SERIES = (C1, C2, C3, C4, C5)

STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "npd", "font.family": "sans-serif", "font.size": 8,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "text.color": INK,
    "axes.titlesize": 8, "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "ytick.major.size": 0, "xtick.major.size": 3, "lines.linewidth": 1.5, "lines.solid_capstyle": "round",
    "legend.frameon": False, "legend.fontsize": 7.5, "legend.handlelength": 1.2, "legend.borderaxespad": 0.0,
    "legend.columnspacing": 1.4, "axes.formatter.useoffset": False, "figure.constrained_layout.use": True,
}  # fmt: skip
HALF, WIDE, TALL = 4.0, 10.0, 2.4
"""Inches. A figure in half of the page's width keeps letters of nine pixels on a phone's 390; one in the whole width
does not, so it is drawn twice (``adaptive``)."""
_MAX_POINTS = 400
_LETTER_POINTS = 5.0
"""Width of a letter of a mark's label, with what margins take of a figure."""
_BELOW = 0.84
"""Of a plot's height: what lies below the labels of marks."""
_number_of_plot = itertools.count()
_lock = threading.Lock()


def figure(width: float = HALF, height: float = TALL) -> Figure:
    """An empty figure; draw on it inside ``with style():``."""
    fig = Figure(figsize=(width, height))
    FigureCanvasSVG(fig)
    return fig


def style() -> AbstractContextManager[None]:
    """The report's look, for the time of drawing one figure."""
    return rc_context(STYLE)  # type: ignore[arg-type]


def to_svg(fig: Figure, title: str) -> Markup:
    """The figure as an ``<svg>`` element without references to anything outside of it.

    Args:
        fig: drawn inside ``style()``.
        title: what a screen reader says.
    """
    out = io.StringIO()
    with style():
        fig.savefig(
            out, format="svg", transparent=True, metadata={"Creator": None, "Date": None, "Format": None, "Type": None}
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    with _lock:
        prefix = f"p{next(_number_of_plot)}-"
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'href="#', f'href="#{prefix}', body).replace("url(#", f"url(#{prefix}")
    # "font: 8.5px 'DejaVu Sans', ..." keeps its size and takes the page's family.
    body = re.sub(r"font: (?:(\d+|bold) )?([\d.]+px) [^;\"]*", _font, body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    return Markup(f'<svg {box[0]} role="img" aria-label="') + title + Markup('">') + Markup(body.strip())


def adaptive(draw: Callable[[float], Markup | None]) -> Markup | None:
    """A figure in the whole width of a page, and for phones and paper the same one in half of it.

    Args:
        draw: from a width in inches to the figure, or None when there is nothing to draw.
    """
    wide, narrow = draw(WIDE), draw(HALF)
    if wide is None or narrow is None:
        return None
    return Markup('<div class="for-wide">{}</div><div class="for-narrow">{}</div>').format(wide, narrow)


def bars_of(values: Array, low: float, high: float, bins: int) -> tuple[Array, Array]:
    """Shares [bins] of ``values`` and the edges [bins + 1]; what lies outside counts to the outermost bins."""
    edges = np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(np.clip(values, low, high), edges)
    return counts / max(len(values), 1), edges


def line(ax: Axes, x: Array, y: Array, colour: str, label: str | None = None) -> None:
    """A line; of a long series the mean of each bucket, within a pale band from its smallest to its largest.

    What is not finite leaves a gap.
    """
    y = np.where(np.isfinite(y), y, np.nan)
    if len(x) > _MAX_POINTS:
        edges = np.linspace(0, len(x), _MAX_POINTS + 1).astype(int)[:-1]
        filled = np.where(np.isfinite(y), y, np.nanmean(y)) if np.isfinite(y).any() else y
        n = np.diff(np.append(edges, len(x)))
        x = np.add.reduceat(x, edges) / n
        ax.fill_between(
            x,
            np.minimum.reduceat(filled, edges),
            np.maximum.reduceat(filled, edges),
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        y = np.add.reduceat(filled, edges) / n
    few = len(x) <= 30
    ax.plot(x, y, color=colour, label=label, marker="o" if few else None, markersize=2.5)


def mark(ax: Axes, at: Sequence[float], labels: Sequence[str]) -> None:
    """Dashed verticals, labelled at the top where the label before leaves room; others end below it. Draw the curves
    first.

    Args:
        ax: the plot.
        at: ascending.
        labels: one each.
    """
    figure, (low, high) = ax.figure, ax.get_xlim()
    assert isinstance(figure, Figure)
    letter = _LETTER_POINTS * (high - low) / (72 * figure.get_figwidth())
    free = low
    for x, label in zip(at, labels, strict=True):
        fits = x >= free
        ax.axvline(x, ymax=1 if fits else _BELOW, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        if not fits:
            continue
        free = x + (len(label) + 2) * letter
        ax.annotate(
            label,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 1),
            textcoords="offset points",
            color=MUTED,
            fontsize=7.5,
            va="top",
        )


def legend(*axes: Axes) -> None:
    """Names of the series of a figure's plots above them, in as many columns as it is wide; nothing where none has a
    name."""
    fig = axes[0].figure
    assert isinstance(fig, Figure)
    found = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    handles, labels = [h for h, _ in found], [label for _, label in found]
    for columns in range(len(labels), 0, -1):
        shown = fig.legend(handles, labels, loc="outside upper left", ncols=columns)
        if columns == 1 or shown.get_window_extent().width <= fig.bbox.width:
            return
        shown.remove()


def _font(match: re.Match[str]) -> str:
    weight, px = match.groups()
    return f"font-size: {px}" + (f"; font-weight: {weight}" if weight else "")
