"""What a filter is, and filters by name.

A filter is one function in one file of ``filters/``: it looks at the scores of all samples and answers with a
value for each and bounds on that value, or with weights, or both. Deciding and counting is done in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from npd_ascend.arrays import Array
from npd_ascend.config.schema import Config, SelectConfig
from npd_ascend.config.stages import QUANTITIES
from npd_ascend.registry import Registry


@dataclass(frozen=True)
class Scores:
    """Columns of all samples, in the order of the rollouts; NLLs in nats a token, NaN where not known.

    Attributes:
        tokens: [N] int64, response tokens.
        truncated: [N] bool, ran into max_new_tokens.
        teacher_cond, teacher_uncond, student_cond, student_uncond: [N] float64, mean NLL of the response with and
            without the prompt.
        ifd_teacher, ifd_student, delta_ifd: [N] float64 in the configured form.
        entropy: of one of the filter's needs, read when it is called: [N] float64, mean entropy of the model along the
            response, nats.
    """

    tokens: Array
    truncated: Array
    teacher_cond: Array
    teacher_uncond: Array
    student_cond: Array
    student_uncond: Array
    ifd_teacher: Array
    ifd_student: Array
    delta_ifd: Array
    entropy: Callable[[str], Array]


@dataclass(frozen=True)
class Bound:
    """One end of what a filter keeps; the end itself is kept.

    Attributes:
        value: the bound, or the quantile (over all samples that could be kept) that gives it.
        quantile: whether ``value`` is a quantile.
    """

    value: float
    quantile: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a filter says of all samples.

    Attributes:
        values: [N] float64 that the bounds are for; not finite: dropped as undefined. None: looks at nothing.
        lower, upper: what is kept; None: no bound on that side.
        below, above: reason of a sample dropped by either bound.
        weights: [N] relative weights, normalised later to mean 1 over the kept samples; None: all equal.
        note: what a reader of the result must know, e.g. that a definition is an interpretation.
        on_delta: the values are Δ-IFD, so an upper bound that is no quantile is the δ at which zones end.
        advice: what may help when too little is kept.
    """

    values: Array | None
    lower: Bound | None = None
    upper: Bound | None = None
    below: str = "below"
    above: str = "above"
    weights: Array | None = None
    note: str | None = None
    on_delta: bool = False
    advice: str = "try other bounds, or quantiles (select.lower_quantile, select.upper_quantile)"


Judge = Callable[[Scores, SelectConfig], Verdict]
SCORES = {name for name, q in QUANTITIES.items() if q.kind == "scores"}
IFD = ("scores_teacher", "unconditioned_teacher", "scores_student", "unconditioned_student")
"""What Δ-IFD needs."""


@dataclass(frozen=True)
class Filter:
    """A registered filter: its function and the stored quantities that it cannot do without."""

    name: str
    needs: frozenset[str]
    judge: Judge


FILTERS: Registry[Filter] = Registry("filter", "select.filter", "npd_ascend.select.filters")


def register(name: str, needs: Collection[str] = ()) -> Callable[[Judge], Judge]:
    """Decorator that makes a function a filter.

    Args:
        name: its name in messages; in ``filters/``, that of its file.
        needs: scores of ``config.stages.QUANTITIES``; columns of ``Scores`` that come from others are NaN.
    """
    if unknown := set(needs) - SCORES:
        raise ValueError(f"filter {name} needs {', '.join(unknown)}; a filter reads {', '.join(sorted(SCORES))}")
    return FILTERS.decorator(lambda judge: Filter(name, frozenset(needs), judge), name)


def needed(config: Config) -> frozenset[str]:
    """Stored quantities that the configured filter looks at."""
    return FILTERS.find(config.select.filter).needs


def bounds(settings: SelectConfig, lower: Bound | None, upper: Bound | None) -> tuple[Bound | None, Bound | None]:
    """Bounds as configured, or a filter's own where the configuration says nothing.

    A quantile goes before a value; null is no bound, ``auto`` the filter's own.
    """

    def one(name: str, own: Bound | None) -> Bound | None:
        quantile, value = getattr(settings, f"{name}_quantile"), getattr(settings, name)
        if quantile is not None:
            return Bound(quantile, quantile=True)
        if value == "auto":
            return own
        return None if value is None else Bound(value)

    return one("lower", lower), one("upper", upper)
