"""Learning rate and the places of steps."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from npd_ascend.config.schema import TrainConfig
from npd_ascend.train.schedule import EPSILON, Timeline, learning_rate


def settings(**kw):
    return TrainConfig(**{"epochs": 10, "lr": 1e-5, "min_lr": 1e-6, **kw})


def test_cosine():
    s = settings()
    assert learning_rate(s, 0) == pytest.approx(1e-5)
    assert learning_rate(s, 5) == pytest.approx((1e-5 + 1e-6) / 2)
    assert learning_rate(s, 2.5) == pytest.approx(1e-6 + 9e-6 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(s, 10) == pytest.approx(1e-6) == pytest.approx(learning_rate(s, 11))


def test_warmup_is_linear_and_meets_the_cosine():
    s = settings(warmup=0.1)
    assert learning_rate(s, 0.25) == pytest.approx(0.25e-5)
    assert learning_rate(s, 1.0) == pytest.approx(1e-5)
    assert learning_rate(s, 10) == pytest.approx(1e-6)


@given(st.floats(0, 0.5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_a_refresh_does_not_restart_it(warmup, sync, before, after):
    """The rate falls on through a refresh, whatever number of steps an epoch has before and after it."""
    s = settings(warmup=warmup)
    first = [p.end for p in Timeline(0.0, [before] * sync).from_step(0)]
    second = [p.end for p in Timeline(float(sync), [after] * (10 - sync)).from_step(0)]
    rates = [learning_rate(s, p) for p in first + second if p >= 10 * warmup]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    assert first[-1] <= second[0] and rates[-1] == pytest.approx(1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 50), st.floats(0, 3))
def test_places(steps, skip, start):
    whole = list(Timeline(start, steps).from_step(0))
    assert [p.index for p in whole] == list(range(sum(steps)))
    assert [p.epoch for p in whole] == [e for e, n in enumerate(steps) for _ in range(n)]
    assert sum(p.ends_epoch for p in whole) == len(steps)
    assert all(a.end == pytest.approx(b.begin) for a, b in zip(whole, whole[1:], strict=False))
    assert whole[-1].end == pytest.approx(start + len(steps))
    assert list(Timeline(start, steps).from_step(skip)) == whole[skip:]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 5))
@example([3], 1 / 3)
@example([7, 3], 1 + 2 / 3)
def test_steps_before(steps, length):
    begins = [p.begin - 1.0 for p in Timeline(1.0, steps).from_step(0)]
    # As far as EPSILON before the end it does not count, as far as twice that it does; rounding decides between.
    assume(not any(0.5 * EPSILON < length - b < 2 * EPSILON for b in begins))
    assert Timeline(1.0, steps).steps_before(1.0 + length) == sum(b < length - EPSILON for b in begins)
