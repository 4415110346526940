"""Captions of figures and tables of a run's report: it follows the run's configuration.

What the paper gives is named only where the run does the same thing.
"""

from __future__ import annotations

from npd_ascend.config.schema import Config, SelectConfig
from npd_ascend.report.collect import Run
from npd_ascend.report.generation import Selection
from npd_ascend.report.paper import LAG, TIME

_AUTHOR = {"student": "the student", "teacher": "the teacher", "reference": "the data"}


def author(config: Config | None) -> str:
    """Who wrote the answers."""
    return _AUTHOR[config.rollout.source if config else "student"]


def rule(s: Selection, settings: SelectConfig | None) -> str:
    """What a filter keeps: ``0 ≤ Δ-IFD ≤ 0.8``, ``Δ-IFD ≤ 0.31 (quantile 0.97)``, ``filter fire``."""
    if not s.filtered:
        return f"filter {s.filter}"
    text = "Δ-IFD"
    if s.lower is not None:
        text = f"{s.lower:.3g}{_quantile(settings, 'lower')} ≤ {text}"
    if s.upper is not None:
        text = f"{text} ≤ {s.upper:.3g}{_quantile(settings, 'upper')}"
    return text if text != "Δ-IFD" else "filter delta_ifd without bounds"


def captions(run: Run) -> dict[str, str]:
    """Text by figure or table; those of figures have the figures' names."""
    c = run.config
    return {
        "accuracy": "Answers to held-out prompts. Bars are 95 % intervals: a gain counts when they do not overlap.",
        "evaluations": _evaluations(c),
        "loss": _loss(run),
        "optimiser": _optimiser(run),
        "lag": _lag(run),
        "reward": "Mean value of the answers that each generation's snapshot drew. A group is the answers to one "
        "prompt: where all are worth the same, right or wrong, there is nothing to compare, and they are left out.",
        "policy": "ρ is the student's probability of a token over the generator's. Right after a refresh both have the "
        "same weights: what is left there is how differently engine and trainer compute. From there it grows with the "
        "lag. Clipped: the bound takes the gradient, or cuts the weight. Masked: the token is left out.",
        "exploration": "Entropy: minus the mean log-prob of the drawn tokens, which estimates it without a pass. Where "
        "it falls towards 0, answers to a prompt become alike and groups teach nothing.",
        "rewards": "Alike: groups of equal values, dropped. k3: KL(generator‖student) from the drawn tokens; its first "
        "step in a generation is the mismatch of engine and trainer, its last the lag. Clipped, masked: means over "
        "its steps.",
        "zones": _zones(run),
        "delta": _delta(run),
        "lengths": _lengths(run),
        "time": _time(run),
    }


def lag_title(config: Config | None) -> str:
    """Heading of the lag."""
    if config and config.rollout.source != "student":
        return "Lag: how far the student has moved since the generation began"
    return "Lag: how far the student has moved from the policy that wrote its data"


def loss_formula(config: Config) -> str:
    """``λ = 0.9 · k = 10``, or the terms with their weights."""
    loss = config.train.loss
    if loss.terms:
        return " + ".join(f"{weight:g} {name}" for name, weight in loss.terms.items() if weight)
    return f"λ = {loss.kd_weight:g}" + (f" · k = {config.annotate.k}" if loss.kd_weight else "")


def complete_time(run: Run) -> bool:
    """Whether the run has all stages of the paper's time table, so that shares can be compared."""
    return {stage for stage, *_ in TIME} <= {t.stage for t in run.times()}


def _quantile(settings: SelectConfig | None, side: str) -> str:
    q = getattr(settings, f"{side}_quantile") if settings else None
    return "" if q is None else f" (quantile {q:g})"


def _selections(run: Run) -> list[Selection]:
    return [g.selection for g in run.generations if g.selection]


def _evaluations(c: Config | None) -> str:
    key = "evaluate" if c and c.evaluate.max_new_tokens else "rollout"
    return (
        "Tokens: mean of an answer. Cut off: answers that ran into the length limit. Many of them mean that "
        f"{key}.max_new_tokens is short or the student does not stop."
    )


def _loss(run: Run) -> str:
    formula = "Composite loss (1−λ)·CE + λ·KD"
    if c := run.config:
        loss = c.train.loss
        if loss.terms:
            formula = f"Loss {loss_formula(c)}; curves of terms are without their weights"
        elif loss.ce_labels == "none" or loss.kd_weight == 1:
            formula = "Divergence from the teacher alone"
        elif loss.kd_weight == 0:
            formula = "Cross-entropy alone"
    refreshed = (
        " A jump at a refresh is new data, not a fault; spikes elsewhere deserve a look."
        if run.refreshes
        else " Spikes deserve a look."
    )
    return f"{formula}, mean over response tokens.{refreshed}"


def _optimiser(run: Run) -> str:
    end = " and does not restart at a refresh" if run.refreshes else ""
    constant = run.config and run.config.train.min_lr == run.config.train.lr
    rise = " after its rise" if run.config and run.config.train.warmup else ""
    rate = f"the learning rate is constant{rise}" if constant else f"one cosine spans the whole run{end}"
    return f"The norm should stay mostly under the clipping bound; {rate}."


def _lag(run: Run) -> str:
    lead = run.config.sync.lead if run.config else 0.0
    start = (
        f"Measured against the snapshot, which is taken {lead:g} epochs before a refresh. "
        if lead and run.refreshes
        else "Zero at the start of each generation, growing with every step. "
    )
    if run.policy.lag_bound is not None:
        return f"{start}The dashed bound is the refresh policy's own."
    near = f"Under the dashed bound of {LAG:g} nats the paper (C.1) counts data as near-policy"
    if run.config and run.config.rollout.source != "student":
        return f"{start}The answers are {author(run.config)}'s, so the bound of {LAG:g} nats says nothing of them."
    return f"{start}{near}. {run.policy.lag_advice}"


def _zones(run: Run) -> str:
    found = _selections(run)
    if not found:
        return ""
    deltas = sorted({s.zone_upper for s in found})
    paper = " Pale bars: the paper's Table 13." if all(s.zones_as_paper for s in found if s.scored) else ""
    return (
        f"Proximal: 0 ≤ Δ-IFD ≤ {', '.join(f'{d:.3g}' for d in deltas)}; degenerate below, disconnect above."
        f"{paper} Large outer zones mean that the two models disagree in kind."
    )


def _delta(run: Run) -> str:
    found = _selections(run)
    if not found:
        return ""
    s = found[-1]
    if not s.filtered:
        dashed = "Dashed: the proximal zone; the filter looks at another value."
    elif s.lower is None and s.upper is None:
        dashed = "The filter has no bounds."
    else:
        dashed = f"Dashed: what the filter keeps, {rule(s, run.config.select if run.config else None)}."
    removed = " What lies left of it the lower bound removes." if s.filtered and s.lower is not None else ""
    return f"{dashed} The outermost bars also hold what lies beyond.{removed}"


def _lengths(run: Run) -> str:
    c = run.config
    if c and c.rollout.source == "reference":
        return "The data's own answers; dotted: mean."
    wall = "A peak at the right end is answers cut at rollout.max_new_tokens"
    rolled = sum(g.rollouts is not None for g in run.generations)
    if rolled > 1 and (not c or c.rollout.source == "student"):
        return f"{wall}; a mean that grows from one generation to the next may be a student that forgets to stop."
    return f"{wall}."


def _time(run: Run) -> str:
    what = (
        "Shares are of the six stages of the paper, summed over generations; the paper's 82 % for rollouts is 1.2 "
        "million prompts on eight NPUs. "
        if complete_time(run)
        else "Summed over generations. "
    )
    return what + "Rates count only the time at work on data; start-up is loading engines and compiling."
