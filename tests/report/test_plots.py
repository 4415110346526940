"""Figures draw what they are given."""

import numpy as np
import pytest

from npd_ascend.report import svg
from npd_ascend.report.plots import _without_pauses


def test_pauses_are_cut_out_and_overlap_stays():
    spans = [(1000.0, 1040.0), (5000.0, 5100.0), (1030.0, 1060.0), (5120.0, 5130.0)]
    shift, pauses, end = _without_pauses(spans)
    assert [a - s for (a, _), s in zip(spans, shift, strict=True)] == [0.0, 60.0, 30.0, 180.0]
    assert pauses == [(60.0, 3940.0)] and end == 190.0


def test_a_run_without_pauses_stays_as_it_is():
    shift, pauses, end = _without_pauses([(10.0, 20.0), (25.0, 40.0)])
    assert shift == [10.0, 10.0] and pauses == [] and end == 30.0


def test_histogram_counts_everything_once():
    values = np.array([-9.0, 0.0, 0.05, 0.5, 0.99, 1.0, 77.0])
    share, edges = svg.bars_of(values, 0.0, 1.0, 10)
    assert share.sum() == pytest.approx(1.0) and len(edges) == 11
    assert share[0] == pytest.approx(3 / 7) and share[-1] == pytest.approx(3 / 7)


def test_long_series_are_drawn_small_and_keep_their_spikes():
    x = np.arange(20_000.0)
    y = np.ones(20_000)
    y[12_345], y[5], y[6] = 40.0, np.nan, np.inf
    with svg.style():
        fig = svg.figure()
        ax = fig.subplots()
        svg.line(ax, x, y, svg.C1)
        assert 40 < ax.get_ylim()[1] < 50
        text = svg.to_svg(fig, "a <title>")
    assert len(text) < 60_000 and "var(--c1)" in text and "a &lt;title&gt;" in text


def test_two_figures_on_a_page_share_no_ids():
    def draw():
        with svg.style():
            fig = svg.figure()
            svg.line(fig.subplots(), np.arange(5.0), np.arange(5.0), svg.C2)
            return svg.to_svg(fig, "x")

    import re

    first, second = (set(re.findall(r'\bid="([^"]+)"', draw())) for _ in range(2))
    assert first and not first & second


@pytest.mark.parametrize("n, width", [(1, svg.HALF), (3, svg.HALF), (9, svg.HALF), (9, svg.WIDE), (28, svg.WIDE)])
def test_labels_of_refreshes_do_not_run_into_each_other(n, width):
    with svg.style():
        fig = svg.figure(width)
        ax = fig.subplots()
        svg.line(ax, np.arange(60.0), np.arange(60.0), svg.C1)
        svg.mark(ax, [60 * (i + 1) / (n + 1) for i in range(n)], [f"refresh {i + 1}" for i in range(n)])
        fig.draw_without_rendering()
        boxes = [t.get_window_extent() for t in ax.texts]
    assert ax.texts[0].get_text() == "refresh 1" and len(ax.lines) == n + 1
    assert len(boxes) == n if n <= 3 else 3 <= len(boxes) <= n
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
