"""Intervals against scipy, simulation and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from npd_ascend.study.statistics import over_seeds, paired, ratio, t_quantile, time_to


def test_t_quantiles():
    scipy = pytest.importorskip("scipy.stats")
    for df in (1, 2, 3, 5, 10, 11, 15, 30, 100, 1000):
        assert t_quantile(df) == pytest.approx(scipy.t.ppf(0.975, df), rel=1e-4)


def test_interval_over_seeds():
    e = over_seeds([0.5, 0.6, 0.7])
    assert (e.mean, e.n) == (pytest.approx(0.6), 3) and e.half == pytest.approx(4.30265 * 0.1 / math.sqrt(3))
    alone = over_seeds([0.5])
    assert alone.mean == 0.5 and not alone.known


def test_interval_holds_what_it_promises():
    rng = np.random.default_rng(0)
    held = [e.low <= 0 <= e.high for e in (over_seeds(x) for x in rng.normal(size=(4000, 3)))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_paired_covers_under_both_kinds_of_chance():
    """Arms that are truly equal: seeds shift both, prompts differ in difficulty, answers are coins."""
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(600):
        difficulty, shift = rng.normal(size=100), rng.normal(scale=0.5, size=(2, 3, 1))
        hits = rng.random((2, 3, 100)) < 1 / (1 + np.exp(-difficulty - shift))
        e = paired(hits[0].mean(1), hits[1].mean(1), list(hits[0]), list(hits[1]))
        inside.append(e.low <= 0 <= e.high)
    assert np.mean(inside) >= 0.945


def test_paired_adds_the_prompts_part():
    a, b = [np.array([1, 1, 0, 1]), np.array([1, 0, 1, 1])], [np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])]
    mean_a, mean_b = [x.mean() for x in a], [x.mean() for x in b]
    e = paired(mean_a, mean_b, a, b)
    gap = np.array([1.0, 0, 0, 0])
    assert e.mean == 0.25 and e.half == pytest.approx(1.959964 * gap.std(ddof=1) / 2)  # both seeds agree
    assert paired(mean_a, mean_b).half == 0
    assert paired([0.75], [0.5], a[:1], b[:1]).known and not paired([0.75], [0.5]).known


def test_ratio_is_geometric():
    e = ratio([8.0, 2.0], [2.0, 2.0])
    assert e.mean == pytest.approx(2) and e.low < 1 < e.high
    assert ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).half == pytest.approx(0, abs=1e-9)


def test_times_on_a_curve():
    seconds, values = [10.0, 20.0, 30.0], [0.2, 0.6, 0.5]
    assert time_to(seconds, values, 0.4) == pytest.approx(15) and time_to(seconds, values, 0.1) == 10
    assert time_to(seconds, values, 0.7) is None
