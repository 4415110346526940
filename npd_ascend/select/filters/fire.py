"""Sample filter of FiRe-OPD: the answers least likely under the teacher go."""

from __future__ import annotations

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.registry import Bound, Scores, Verdict, bounds, register

DROPPED = 0.2


@register("fire", needs=("scores_teacher",))
def fire(scores: Scores, settings: SelectConfig) -> Verdict:
    """Drops the 20 % of samples with the lowest mean log-prob under the teacher (arXiv:2606.02684, section 3).

    There the quantile is that of a batch, here of the whole generation. ``lower_quantile`` sets another share.
    """
    lower, upper = bounds(settings, Bound(DROPPED, quantile=True), None)
    return Verdict(-scores.teacher_cond, lower, upper, below="unlikely")
