"""How much better an answer is than the others to its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import AdvantageConfig
from npd_ascend.errors import UserError

_EPS = 1e-4
"""Added to a standard deviation, as TRL does."""


@dataclass(frozen=True)
class Advantages:
    """Of all samples of a generation.

    Attributes:
        reward: [N] float64, their values.
        advantage: [N] float32.
        dropped: [N] bool, of groups whose values are all equal; none where they are to stay.
        summary: for the manifest: ``groups``, ``equal`` (groups of equal values), ``equal_high`` and ``equal_low`` (of
            these, not below and below the mean of all values), ``mean``, ``std`` (within groups, mean), ``idle``
            (whether every group is equal, so that this generation teaches nothing).
    """

    reward: Array
    advantage: Array
    dropped: Array
    summary: dict[str, Any]


def advantages(group: Array, value: Array, settings: AdvantageConfig) -> Advantages:
    """Advantages of all samples.

    With G values r of a group of mean m and (unbiased) standard deviation s: r − m, or with ``leave_one_out`` r minus
    the mean of the others, which is (r − m) G / (G − 1); divided by s + 1e-4 with ``std`` (GRPO, arXiv:2402.03300,
    section 4.1.2; without it Dr. GRPO, arXiv:2503.20783).

    Groups of equal values have advantage 0 and are dropped, but where there is no other: then the first one stays, so
    that the generation has a step.

    Args:
        group: [N] int64, which group each sample is of.
        value: [N] float64.
        settings: as configured.

    Raises:
        UserError: a group has one sample only.
    """
    _, place, size = np.unique(group, return_inverse=True, return_counts=True)
    if size.min() < 2:
        raise UserError(
            "select: a prompt has one answer, and an advantage compares several: set rollout.samples to 2 or more"
        )
    mean = np.bincount(place, value) / size
    off = value - mean[place]
    spread = np.sqrt(np.bincount(place, off**2) / (size - 1))
    low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    np.minimum.at(low, place, value)
    np.maximum.at(high, place, value)
    equal = low == high
    advantage = np.where(equal[place], 0.0, off)
    if settings.baseline == "leave_one_out":
        advantage = advantage * (size / (size - 1))[place]
    if settings.scale == "std":
        advantage = advantage / (spread[place] + _EPS)
    idle = bool(equal.all())
    dropped = np.zeros(len(value), bool) if settings.keep_equal else equal[place]
    if idle and not settings.keep_equal:
        dropped = place != place[0]
    of_all = float(value.mean())
    return Advantages(
        value,
        advantage.astype(np.float32),
        dropped,
        {
            "groups": len(size),
            "equal": int(equal.sum()),
            "equal_high": int((equal & (mean >= of_all)).sum()),
            "equal_low": int((equal & (mean < of_all)).sum()),
            "mean": of_all,
            "std": float(spread.mean()),
            "idle": idle,
        },
    )
