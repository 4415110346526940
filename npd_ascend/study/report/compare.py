"""Figures of arms and verdicts on claims, computed from the results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.study.report.paper import LOWER_IS_BETTER, Claim
from npd_ascend.study.report.readings import Readings, by_prompt
from npd_ascend.study.statistics import Estimate, over_seeds, paired, ratio, time_to

TOTAL = "total"
"""``stage`` of the time row that ends an arm."""
_KIND = {"accuracy": "eval", "ended": "eval"}
"""Kind of the row that holds a measure; others are in ``exposure`` rows."""
VERDICTS = {
    "shown": "shown",
    "open": "not shown: the interval includes 0",
    "against": "against the claim",
    "few": "not shown: one seed alone",
    "missing": "not run",
}
COUNTED = {
    "shown": "shown",
    "open": "not shown",
    "against": "against",
    "few": "without interval (one seed)",
    "missing": "not run",
}


@dataclass(frozen=True)
class Verdict:
    """A claim on one task.

    Attributes:
        claim, task: which.
        gain: by how much ``better`` is ahead, positive when the claim holds; of seconds the factor by which it is
            faster; None when an arm is missing.
        outcome: key of ``VERDICTS``.
    """

    claim: Claim
    task: str
    gain: Estimate | None
    outcome: str

    @property
    def text(self) -> str:
        """One line for the report."""
        return VERDICTS[self.outcome]


Measured = dict[int, tuple[float, Array | None]]
"""Seed -> value of a measure, and that of each prompt where rows hold them."""


def measured(results: Readings, task: str, group: str, arm: str, measure: str) -> Measured:
    """Last values of a measure, without seeds that lack it; ``seconds`` is the whole time of an arm that had the
    machine to itself, ``start`` the accuracy before the first step, ``gain`` what has been added to it."""
    if measure == "seconds":
        return {
            seed: (float(row["seconds"]), None)
            for seed, s in results.series(task, group, arm, "time").items()
            for row in s.rows
            if row.get("stage") == TOTAL and row.get("seconds") and row.get("timed")
        }
    if measure == "gain":
        before, end = (measured(results, task, group, arm, m) for m in ("start", "accuracy"))
        return {seed: _minus(end[seed], before[seed]) for seed in sorted(set(end) & set(before))}
    if measure == "start":
        series = results.series(task, group, arm, "eval")
        rows, measure = {seed: s.rows[0] for seed, s in series.items() if s.rows[0]["step"] == 0}, "accuracy"
    else:
        rows = results.last(task, group, arm, _KIND.get(measure, "exposure"))
    return {
        seed: (float(row[measure]), by_prompt(row, measure))
        for seed, row in rows.items()
        if row.get(measure) is not None and math.isfinite(row[measure])
    }


def _minus(a: tuple[float, Array | None], b: tuple[float, Array | None]) -> tuple[float, Array | None]:
    by_prompts = None if a[1] is None or b[1] is None else a[1].astype(np.float64) - b[1]
    return a[0] - b[0], by_prompts


def values(results: Readings, task: str, group: str, arm: str, measure: str) -> dict[int, float]:
    """Seed -> value of a measure, see ``measured``."""
    return {seed: value for seed, (value, _) in measured(results, task, group, arm, measure).items()}


def estimate(results: Readings, task: str, group: str, arm: str, measure: str) -> Estimate | None:
    """Mean over seeds; None without any."""
    found = values(results, task, group, arm, measure)
    return over_seeds(list(found.values())) if found else None


def difference(results: Readings, task: str, group: str, a: str, b: str, measure: str) -> Estimate | None:
    """a − b over the seeds that both have; None without any. Also over prompts, where rows hold values of each."""
    return _difference(*(measured(results, task, group, arm, measure) for arm in (a, b)))


def gain(results: Readings, task: str, group: str, arm: str) -> Estimate | None:
    """What an arm adds to the accuracy of its start, over seeds and prompts; None where it was not measured."""
    return _difference(*(measured(results, task, group, arm, measure) for measure in ("accuracy", "start")))


def _difference(a: Measured, b: Measured) -> Estimate | None:
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    prompts = [[of for s in seeds if (of := x[s][1]) is not None] for x in (a, b)]
    whole = all(len(of) == len(seeds) for of in prompts)
    return paired([a[s][0] for s in seeds], [b[s][0] for s in seeds], *(prompts if whole else ([], [])))


def judge(results: Readings, task: str, group: str, claim: Claim) -> Verdict:
    """What the results say of a claim on one task."""
    a, b, measure = claim.better, claim.worse, claim.measure
    if measure == "seconds":
        x, y = (values(results, task, group, arm, measure) for arm in (b, a))
        seeds = sorted(set(x) & set(y))
        if not seeds:
            return Verdict(claim, task, None, "missing")
        gain, level = ratio([x[s] for s in seeds], [y[s] for s in seeds]), 1.0
    else:
        found = difference(results, task, group, a, b, measure)
        if found is None:
            return Verdict(claim, task, None, "missing")
        gain, level = (flipped(found) if measure in LOWER_IS_BETTER else found), 0.0
    if gain.n < 2 or not gain.known:
        return Verdict(claim, task, gain, "few")
    return Verdict(claim, task, gain, "shown" if gain.low > level else "against" if gain.high < level else "open")


def flipped(e: Estimate) -> Estimate:
    """The negative."""
    return Estimate(-e.mean, -e.high, -e.low, e.n)


@dataclass(frozen=True)
class Race:
    """How long two arms take to one accuracy.

    Attributes:
        arm: the slower one, by claim.
        target: accuracy at the end of ``arm``, mean over seeds.
        own, reference: seconds, geometric mean over seeds of those that arrive; None: no seed does.
        factor: ``own`` over ``reference`` on the seeds where both arrive.
        arrived: (seeds of the reference that arrive, seeds in all).
    """

    arm: str
    target: float
    own: float | None
    reference: float | None
    factor: Estimate | None
    arrived: tuple[int, int]


def race(results: Readings, task: str, group: str, arm: str, reference: str) -> Race | None:
    """Time of ``arm`` and ``reference`` to the accuracy that ``arm`` ends with; None without curves of both.

    For each seed the target is the accuracy that this seed's own ``arm`` run ends with.
    """
    own, ref = (results.series(task, group, a, "eval") for a in (arm, reference))
    seeds = sorted(set(own) & set(ref))
    if not seeds:
        return None
    pairs, targets, owns = [], [], []
    for seed in seeds:
        a, r = own[seed], ref[seed]
        target = float(a.column("accuracy")[-1])
        targets.append(target)
        mine = time_to(a.column("seconds").tolist(), a.column("accuracy").tolist(), target)
        theirs = time_to(r.column("seconds").tolist(), r.column("accuracy").tolist(), target)
        if mine and mine > 0:
            owns.append(mine)
            if theirs and theirs > 0:
                pairs.append((mine, theirs))
    factor = ratio([p[0] for p in pairs], [p[1] for p in pairs]) if pairs else None
    return Race(
        arm,
        float(np.mean(targets)),
        _geometric(owns),
        _geometric([p[1] for p in pairs]),
        factor,
        (len(pairs), len(seeds)),
    )


def spikes(loss: Array, window: int = 10, factor: float = 1.5) -> int:
    """Steps whose loss is over ``factor`` times the median of the ``window`` steps before them."""
    count = 0
    for i in range(window, len(loss)):
        base = float(np.median(loss[i - window : i]))
        count += bool(base > 0 and loss[i] > factor * base)
    return count


def _geometric(x: Sequence[float]) -> float | None:
    return float(np.exp(np.mean(np.log(x)))) if len(x) else None
