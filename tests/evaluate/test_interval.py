"""Intervals and pass@k against their definitions."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend.evaluate.interval import Z95, bootstrap, pass_at_k, wilson


@given(st.integers(1, 10_000), st.data())
def test_wilson_bounds_are_where_the_score_test_is_just_significant(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    p = successes / n
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:  # the definition: |p - bound| = z * sqrt(bound (1 - bound) / n)
            assert abs(p - bound) == pytest.approx(Z95 * (bound * (1 - bound) / n) ** 0.5, rel=1e-6, abs=1e-9)


def test_wilson_known_value():
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)


def test_wilson_covers_95_percent_on_average():
    intervals = [wilson(c, 60) for c in range(61)]
    coverage = [
        sum(comb(60, c) * p**c * (1 - p) ** (60 - c) for c, (low, high) in enumerate(intervals) if low <= p <= high)
        for p in np.linspace(0.02, 0.98, 97)
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01) and min(coverage) > 0.9


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    outcomes = [i < correct for i in range(n)]
    naive = np.mean([any(subset) for subset in combinations(outcomes, k)])
    assert pass_at_k(np.array([n]), np.array([correct]), k)[0] == pytest.approx(naive, abs=1e-12)
    assert naive == pytest.approx(1 - comb(n - correct, k) / comb(n, k), abs=1e-12)


def test_bootstrap_is_deterministic_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).random(400)
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)
    assert bootstrap(np.ones(3)) == (1.0, 1.0)
