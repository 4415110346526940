"""Intervals and comparisons over seeds and prompts. Every interval is two-sided 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array

_T975 = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)
"""Quantile 0.975 of Student's t with 1 to 10 degrees of freedom."""
_Z975 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: point estimate.
        low, high: ends of the interval; both NaN where one seed alone allows none.
        n: seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


def t_quantile(df: int) -> float:
    """Quantile 0.975 of Student's t: exact to 5 digits up to 10 degrees of freedom, then Cornish and Fisher's
    expansion (Abramowitz & Stegun 26.7.5; error below 2e-4)."""
    if df < 1:
        raise ValueError(f"{df} degrees of freedom")
    if df <= len(_T975):
        return _T975[df - 1]
    z = _Z975
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t interval.

    Args:
        values: one a seed, at least one.
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, math.nan, math.nan, len(x))
    half = t_quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(mean, mean - half, mean + half, len(x))


def paired(
    a: Sequence[float], b: Sequence[float], hits_a: Sequence[Array] | None = None, hits_b: Sequence[Array] | None = None
) -> Estimate:
    """Mean difference a − b of runs that share seed and prompts.

    Two things are drawn at random: seeds, and the held-out prompts, which all seeds share. The half-width is
    √(h_seed² + h_prompt²) with h_seed from Student's t over the per-seed differences and h_prompt = 1.96 times the
    standard error, over prompts, of the difference averaged over seeds. The chance of a single answer counts in both,
    so the interval is rather too wide than too narrow.

    Args:
        a, b: a value a seed, in the same order.
        hits_a, hits_b: for each seed the values [P] of the same prompts, 0/1 of an accuracy; None: prompts are taken
            as fixed.
    """
    seeds = over_seeds(np.subtract(a, b).tolist())
    if not hits_a or not hits_b or len({len(h) for h in (*hits_a, *hits_b)}) != 1:
        return seeds
    gap = (np.mean(hits_a, 0) - np.mean(hits_b, 0)).astype(np.float64)
    by_prompt = _Z975 * float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else 0.0
    if not seeds.known:
        return Estimate(seeds.mean, seeds.mean - by_prompt, seeds.mean + by_prompt, seeds.n)
    half = math.hypot(seeds.half, by_prompt)
    return Estimate(seeds.mean, seeds.mean - half, seeds.mean + half, seeds.n)


def ratio(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Geometric mean over seeds of a / b, with Student's t interval on the logarithm.

    Args:
        a, b: positive, a value a seed, in the same order.
    """
    logs = over_seeds(np.log(np.divide(a, b)).tolist())
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n)


def time_to(seconds: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """When a measured curve first reaches ``target``, by straight lines between the points; None: never.

    Args:
        seconds: ascending.
        values: accuracy at each.
    """
    for i, value in enumerate(values):
        if value >= target:
            if i == 0:
                return float(seconds[0])
            t0, t1, v0 = seconds[i - 1], seconds[i], values[i - 1]
            return float(t0 + (t1 - t0) * (target - v0) / (value - v0))
    return None
