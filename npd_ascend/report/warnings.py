"""What a person should know before believing the figures: one line each, with what to do about it."""

from __future__ import annotations

import numpy as np

from npd_ascend.config.schema import Config
from npd_ascend.report.collect import Run, series
from npd_ascend.report.numbers import number, percent

_TRUNCATED = 0.05
_RISE = 0.10
_DENSITY = 0.97
_FEW_ROWS = 20
_TOPK_MASS = 0.9
_CLIPPED = 0.5


def warnings_of(run: Run) -> list[str]:
    """Warnings of a run, the gravest first."""
    return [*_status(run), *_accuracy(run), *_selection(run), *_training(run), *_data(run), *run.problems]


def _status(run: Run) -> list[str]:
    status = run.state.get("status")
    if status == "failed":
        why = run.state.get("error")
        return [
            f"The run failed{f': {why}' if why else ''}. Figures stop where it stopped; the same command goes on "
            "from there."
        ]
    if status in ("running", "stopped"):
        return [f"The run is not finished ({status}): figures are of what is there so far."]
    return []


def _accuracy(run: Run) -> list[str]:
    start, end = run.evaluation("start"), run.evaluation("end")
    if not start or not end:
        return []
    if end.accuracy < start.accuracy:
        return [
            f"Accuracy fell from {percent(start.accuracy)} to {percent(end.accuracy)}: look at the keep rate, "
            "the lag and the samples first."
        ]
    if end.interval[0] <= start.interval[1]:
        return ["The confidence intervals of start and end overlap: the gain may be chance; evaluate on more prompts."]
    return []


def _selection(run: Run) -> list[str]:
    bound = run.config.select.warn_keep_below if run.config else 0.85
    low = [
        (g.index, g.selection)
        for g in run.generations
        if g.selection and g.selection.comparable and g.selection.kept < bound * g.selection.comparable
    ]
    if not low:
        return []
    worst = min((s for _, s in low), key=lambda s: s.keep_rate)
    reason = next((r for r in worst.reasons if r != "kept"), "")
    paper = " (the paper keeps 96 %)" if worst.rule_as_paper else ""
    return [
        f"{_which([i for i, _ in low])}: only {percent(worst.keep_rate)} of the samples are kept{paper}, most of "
        f"the others are left out as {reason}. The filter may remove just what the student should learn from"
        f"{_other_bounds(run.config)}."
    ]


def _other_bounds(config: Config | None) -> str:
    """What could be tried in the place of the configured rule."""
    if config is None or config.select.filter == "none":
        return ""
    c = config.select
    asked = [
        f"select.{side}_quantile: {q:g}"
        for side, q in (("lower", c.lower_quantile), ("upper", c.upper_quantile))
        if q is not None
    ]
    if asked:
        return f"; {' and '.join(asked)} asks for as much"
    lower = "select.lower: null, " if c.lower is not None else ""
    return f": try {lower}a bound by quantile, or select.filter: none"


def _training(run: Run) -> list[str]:
    out = []
    _, loss = series(run.train, "loss")
    if len(loss) and not np.isfinite(loss).all():
        out.append(f"The loss was not a finite number in {int((~np.isfinite(loss)).sum())} of {len(loss)} steps.")
    _, norm = series(run.train, "grad_norm")
    if len(norm) and run.config:
        share = float((norm > run.config.train.clip).mean())
        if share > _CLIPPED:
            out.append(
                f"{percent(share, 0)} of the steps had their gradient clipped at {run.config.train.clip:g}: the "
                "learning rate or the batch may be ill chosen."
            )
    _, lag = series(run.lag, "forward")
    lag = lag[np.isfinite(lag)]
    written = run.config is None or run.config.rollout.source == "student"
    if written and len(lag) and lag.max() > run.lag_bound:
        out.append(
            f"The lag reached {number(float(lag.max()))} nats, above {run.lag_bound:g}: part of the data was no "
            f"longer near the student's policy. {run.policy.lag_advice}"
        )
    return out


def rise_of_truncated(generation: int, before: float, now: float) -> str | None:
    """What to say when many more answers are cut than a generation earlier; None: they are not.

    Args:
        generation: number of the later one.
        before, now: shares of truncated answers of the earlier one and of this one.
    """
    if now - before <= _RISE:
        return None
    return (
        f"Generation {generation}: {percent(now)} of the answers ran into rollout.max_new_tokens, against "
        f"{percent(before)} a generation earlier: the student is forgetting to stop. See whether the teacher ends "
        "its answers in a token that the student knows (npd doctor), and within rollout.max_new_tokens; "
        "select.keep_truncated: false leaves such answers out."
    )


def _data(run: Run) -> list[str]:
    found: list[tuple[str, list[tuple[int, float]]]] = [
        (
            "{} of the answers ran into rollout.max_new_tokens; raise it, or see whether the student stops at all.",
            [
                (g.index, g.rollouts.truncated)
                for g in run.generations
                if g.rollouts and g.rollouts.truncated > _TRUNCATED
            ],
        ),
        (
            "the stored top-k holds only {} of the teacher's probability; raise annotate.k.",
            [
                (g.index, g.store.mass)
                for g in run.generations
                if g.store and g.store.mass is not None and g.store.mass < _TOPK_MASS
            ],
        ),
        (
            "rows are only {} full; a longer pack.row_length packs better.",
            [
                (g.index, g.packing.density)
                for g in run.generations
                if g.packing and g.packing.rows > _FEW_ROWS and g.packing.density < _DENSITY
            ],
        ),
    ]
    rolled = [(g.index, g.rollouts.truncated) for g in run.generations if g.rollouts]
    rises = [rise_of_truncated(i, before, now) for (_, before), (i, now) in zip(rolled, rolled[1:], strict=False)]
    out = [line for line in rises if line]
    for text, cases in found:
        if cases:
            values = sorted(v for _, v in cases)
            low, high = percent(values[0]), percent(values[-1])
            out.append(f"{_which([i for i, _ in cases])}: {text.format(low if low == high else f'{low} to {high}')}")
    lost = [(g.index, g.packing) for g in run.generations if g.packing and (g.packing.dropped or g.packing.truncated)]
    if lost:
        dropped, cut = sum(p.dropped for _, p in lost), sum(p.truncated for _, p in lost)
        out.append(
            f"{_which([i for i, _ in lost])}: packing left out {dropped:,} samples and cut {cut:,} that are "
            "longer than pack.row_length."
        )
    return out


def _which(indices: list[int]) -> str:
    """``Generation 1`` or ``Generations 0, 2``."""
    shown = ", ".join(map(str, indices[:8])) + (" …" if len(indices) > 8 else "")
    return f"Generation{'s' if len(indices) > 1 else ''} {shown}"
