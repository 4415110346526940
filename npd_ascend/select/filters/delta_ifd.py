"""The filter of NPD: lower <= Δ-IFD <= upper."""

from __future__ import annotations

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.metrics import DELTA
from npd_ascend.select.registry import IFD, Bound, Scores, Verdict, bounds, register

ADVICE = (
    "the bounds do not suit this pair of models: try the upper bound alone (select.lower: null) or the paper's "
    "shares as quantiles (select.lower_quantile: 0.026, select.upper_quantile: 0.988)"
)


@register("delta_ifd", needs=IFD)
def delta_ifd(scores: Scores, settings: SelectConfig) -> Verdict:
    """Drops degenerate samples (Δ below the lower bound) and those the teacher cannot follow (above the upper).

    NPD (arXiv:2605.05940) section 3.3, eq. (4); 0 and δ = 0.8. One-sided constraints of its Table 3 by setting the
    other bound to null.
    """
    lower, upper = bounds(settings, Bound(0.0), Bound(DELTA))
    return Verdict(scores.delta_ifd, lower, upper, below="degenerate", above="disconnect", on_delta=True, advice=ADVICE)
