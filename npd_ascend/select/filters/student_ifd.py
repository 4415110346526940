"""IFD of the student alone, the single-model filter of NPD's Table 3."""

from __future__ import annotations

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.registry import Bound, Scores, Verdict, bounds, register


@register("student_ifd", needs=("scores_student", "unconditioned_student"))
def student_ifd(scores: Scores, settings: SelectConfig) -> Verdict:
    """Drops what the prompt does not help the student to predict, IFD > 1, as Cherry does (arXiv:2308.12032).

    NPD gives no bounds for this row of its table; quantiles or other bounds can be configured.
    """
    lower, upper = bounds(settings, None, Bound(1.0))
    return Verdict(scores.ifd_student, lower, upper, note="bounds of single-model IFD are those of Cherry (IFD <= 1)")
