"""What a person should know before believing the figures: one line each, with what to do about it."""

from __future__ import annotations

import math

import numpy as np

from npd_ascend.report.collect import Run, series
from npd_ascend.report.numbers import number, percent
from npd_ascend.report.paper import LAG

_TRUNCATED = 0.05
_DENSITY = 0.97
_TOPK_MASS = 0.9
_CLIPPED = 0.5


def warnings_of(run: Run) -> list[str]:
    """Warnings of a run, the gravest first."""
    return [*_status(run), *_accuracy(run), *_selection(run), *_training(run), *_data(run), *run.problems]


def _status(run: Run) -> list[str]:
    status = run.state.get("status")
    if status == "failed":
        why = run.state.get("error")
        return [f"The run failed{f': {why}' if why else ''}. Figures stop where it stopped; the same command goes on from there."]
    if status in ("running", "stopped"):
        return [f"The run is not finished ({status}): figures are of what stands so far."]
    return []


def _accuracy(run: Run) -> list[str]:
    start, end = run.evaluation("start"), run.evaluation("end")
    if not start or not end:
        return []
    if end.accuracy < start.accuracy:
        return [f"Accuracy fell from {percent(start.accuracy)} to {percent(end.accuracy)}: look at the keep rate, the lag "
                "and the samples first."]
    if end.interval[0] <= start.interval[1]:
        return ["The confidence intervals of start and end overlap: the gain may be chance; evaluate on more prompts."]
    return []


def _selection(run: Run) -> list[str]:
    out = []
    bound = run.config.select.warn_keep_below if run.config else 0.85
    for g in run.generations:
        s = g.selection
        if s and s.samples and s.keep_rate < bound:
            zone = "degenerate" if s.share("degenerate") >= s.share("disconnect") else "disconnect"
            out.append(f"Generation {g.index} keeps only {percent(s.keep_rate)} of its samples (the paper keeps 96 %), "
                       f"most of the rest is in the {zone} zone: the filter may remove just what the student should "
                       "learn from. Try select.lower: null, a bound by quantile, or select.metric: none.")
    return out


def _training(run: Run) -> list[str]:
    out = []
    _, loss = series(run.train, "loss")
    if len(loss) and not np.isfinite(loss).all():
        out.append(f"The loss was not a finite number in {int((~np.isfinite(loss)).sum())} of {len(loss)} steps.")
    _, norm = series(run.train, "grad_norm")
    if len(norm) and run.config:
        share = float((norm > run.config.train.clip).mean())
        if share > _CLIPPED:
            out.append(f"{percent(share, 0)} of the steps had their gradient clipped at {run.config.train.clip:g}: the "
                       "learning rate or the batch may be ill chosen.")
    _, lag = series(run.lag, "forward")
    lag = lag[np.isfinite(lag)]
    bound = run.config.sync.epsilon if run.config and run.config.sync.policy == "kl" else LAG
    if len(lag) and lag.max() > bound:
        out.append(f"The lag reached {number(float(lag.max()))} nats, above {bound:g}: part of the data was no longer "
                   "near the student's policy. More refreshes (sync.refreshes) or sync.policy: kl keep it below.")
    return out


def _data(run: Run) -> list[str]:
    out = []
    for g in run.generations:
        if g.rollouts and g.rollouts.truncated > _TRUNCATED:
            out.append(f"Generation {g.index}: {percent(g.rollouts.truncated)} of the answers ran into "
                       "rollout.max_new_tokens.")
        p = g.packing
        if p and (p.dropped or p.truncated):
            out.append(f"Generation {g.index}: packing left out {p.dropped:,} samples and cut {p.truncated:,} "
                       "(longer than pack.row_length).")
        if p and p.rows > 2 * max(p.epochs, 1) and not math.isnan(p.density) and p.density < _DENSITY:
            out.append(f"Generation {g.index}: rows are only {percent(p.density)} full; a longer pack.row_length packs "
                       "better.")
        if g.store and g.store.mass is not None and g.store.mass < _TOPK_MASS:
            out.append(f"Generation {g.index}: the stored top-k holds only {percent(g.store.mass)} of the teacher's "
                       "probability; raise annotate.k.")
    return out
