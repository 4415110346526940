"""From a filter's verdict to a decision, a reason and a weight for every sample, and the tables of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import SelectConfig
from npd_ascend.errors import UserError
from npd_ascend.select.metrics import DELTA, ZONES, zone_of
from npd_ascend.select.registry import Bound, Filter, Scores, Verdict

HISTOGRAM_BINS = 60
EQUAL = "equal"


@dataclass(frozen=True)
class Decisions:
    """One row a sample.

    Attributes:
        keep: [N] bool.
        reason: [N] int8, number into ``reasons``.
        reasons: names, ``kept`` first.
        zone: [N] int8, number into ``metrics.ZONES``.
        weight: [N] float32, 0 where not kept, mean 1 over the kept.
        metric: [N] float64, the filter's value of each sample; NaN where it has none.
        lower, upper: bounds as applied, None where there was none.
        zone_upper: δ that the zones were cut at.
        note: the filter's remark, or None.
        on_delta, advice: as in ``Verdict``.
    """

    keep: Array
    reason: Array
    reasons: tuple[str, ...]
    zone: Array
    weight: Array
    metric: Array
    lower: float | None
    upper: float | None
    zone_upper: float
    note: str | None
    on_delta: bool
    advice: str


def decide(scores: Scores, chosen: Filter, settings: SelectConfig, equal: Array | None = None) -> Decisions:
    """Applies a filter to all samples of a generation.

    A sample is dropped for the first of: of an equal group (whose answers are all worth the same), empty, truncated (if
    so configured), undefined (its value is not a number), below or above the filter's bounds.

    Args:
        scores: of all samples.
        chosen: the filter.
        settings: its bounds.
        equal: [N] bool, samples of equal groups; None: there are no groups.

    Raises:
        UserError: nothing is kept.
    """
    n = len(scores.tokens)
    verdict = chosen.judge(scores, settings)
    reasons = tuple(dict.fromkeys(("kept", EQUAL, "empty", "truncated", "undefined", verdict.below, verdict.above)))
    reason = np.zeros(n, np.int8)

    def drop(where: Array, name: str) -> None:
        reason[where & (reason == 0)] = reasons.index(name)

    if equal is not None:
        drop(equal, EQUAL)
    drop(scores.tokens == 0, "empty")
    if not settings.keep_truncated:
        drop(scores.truncated, "truncated")
    metric, lower, upper = np.full(n, np.nan), None, None
    if verdict.values is not None:
        metric = np.where(np.isfinite(verdict.values), verdict.values, np.nan)
        drop(np.isnan(metric), "undefined")
        candidates = metric[reason == 0]
        lower, upper = _resolve(verdict.lower, candidates), _resolve(verdict.upper, candidates)
        if lower is not None:
            drop(metric < lower, verdict.below)
        if upper is not None:
            drop(metric > upper, verdict.above)
    keep = reason == 0
    # Zones are the paper's whatever filters: only an absolute δ of this very metric moves them.
    moved = verdict.on_delta and verdict.upper is not None and not verdict.upper.quantile
    zone_upper = upper if moved and upper is not None else DELTA
    decisions = Decisions(
        keep,
        reason,
        reasons,
        zone_of(scores.delta_ifd, zone_upper),
        _weights(verdict, keep),
        metric,
        lower,
        upper,
        zone_upper,
        verdict.note,
        verdict.on_delta,
        verdict.advice,
    )
    if n and not keep.any():
        raise UserError(
            f"select: filter {chosen.name} keeps none of {n} samples ({_dropped(decisions)}); {_advice(decisions)}"
        )
    return decisions


def summary(decisions: Decisions, scores: Scores, settings: SelectConfig) -> dict[str, Any]:
    """Tables for the manifest and the report, JSON without NaN.

    Keys: ``filter``, ``on_delta``, ``ifd_form``, ``samples``, ``kept``, ``keep_rate``, ``low_keep_rate``, ``zones``
    ({zone: {count, share}}), ``zone_upper``, ``reasons`` ({reason: count}), ``bounds`` ({lower, upper}),
    ``delta_ifd`` (histogram: edges, counts, and mean; null when there is none), ``note``.
    """
    n = len(decisions.keep)
    kept = int(decisions.keep.sum())
    by_zone = np.bincount(decisions.zone, minlength=len(ZONES)).tolist()
    by_reason = np.bincount(decisions.reason, minlength=len(decisions.reasons)).tolist()
    return {
        "filter": settings.filter,
        "on_delta": decisions.on_delta,
        "ifd_form": settings.ifd_form,
        "samples": n,
        "kept": kept,
        "keep_rate": kept / n if n else 1.0,
        "low_keep_rate": kept < settings.warn_keep_below * _judged(decisions),
        "zones": {z: {"count": c, "share": c / n if n else 0.0} for z, c in zip(ZONES, by_zone, strict=True)},
        "zone_upper": decisions.zone_upper,
        "reasons": {r: c for r, c in zip(decisions.reasons, by_reason, strict=True) if c or r == "kept"},
        "bounds": {"lower": decisions.lower, "upper": decisions.upper},
        "delta_ifd": _histogram(scores.delta_ifd, decisions.zone_upper),
        "note": decisions.note,
    }


def warning(name: str, decisions: Decisions, settings: SelectConfig) -> str | None:
    """One line of advice when the keep rate is under ``warn_keep_below``, else None."""
    n, kept = len(decisions.keep), int(decisions.keep.sum())
    if kept >= settings.warn_keep_below * _judged(decisions):
        return None
    return (
        f"select: filter {name} keeps {kept / n:.1%} of {n} samples, under warn_keep_below "
        f"{settings.warn_keep_below:.0%} ({_dropped(decisions)}); {_advice(decisions)}"
    )


def _judged(decisions: Decisions) -> int:
    """Samples that the filter could keep: those of equal groups teach nothing, whatever it says."""
    return int((decisions.reason != decisions.reasons.index(EQUAL)).sum())


def _resolve(bound: Bound | None, candidates: Array) -> float | None:
    if bound is None or (bound.quantile and not len(candidates)):
        return None
    return float(np.quantile(candidates, bound.value)) if bound.quantile else bound.value


def _weights(verdict: Verdict, keep: Array) -> Array:
    weight = keep.astype(np.float64)
    if verdict.weights is not None:
        weight *= verdict.weights
    total = weight.sum()
    return (weight * (keep.sum() / total) if total else weight).astype(np.float32)


def _dropped(decisions: Decisions) -> str:
    counts = np.bincount(decisions.reason, minlength=len(decisions.reasons))
    total = len(decisions.reason)
    return ", ".join(
        f"{c / total:.1%} {r}" for r, c in zip(decisions.reasons[1:], counts[1:].tolist(), strict=True) if c
    )


def _advice(decisions: Decisions) -> str:
    counts = dict(
        zip(decisions.reasons, np.bincount(decisions.reason, minlength=len(decisions.reasons)).tolist(), strict=True)
    )
    unfit = counts.get("empty", 0) + counts["truncated"] + counts["undefined"]
    if 2 * unfit > len(decisions.reason) - counts["kept"]:
        return (
            "most of these are empty, truncated or without a value: see the answers, rollout.max_new_tokens, the "
            "chat template and select.keep_truncated"
        )
    return decisions.advice


def _histogram(delta: Array, upper: float) -> dict[str, Any] | None:
    """Counts of Δ-IFD; the edges span 0, δ and all but the outermost 0.1 % a side, which the end bins take in."""
    finite = delta[np.isfinite(delta)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [0.001, 0.999])
    low, high = min(low, 0.0), max(high, upper)
    counts, edges = np.histogram(np.clip(finite, low, high), bins=HISTOGRAM_BINS, range=(low, high))
    return {"edges": [round(float(e), 6) for e in edges], "counts": counts.tolist(), "mean": float(finite.mean())}
