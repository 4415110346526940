"""A filter: leaves out answers at which the teacher does not know what to say."""

from __future__ import annotations

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.registry import Bound, Scores, Verdict, bounds, register


@register("confident", needs=("scores_teacher",))
def confident(scores: Scores, settings: SelectConfig) -> Verdict:
    """Keeps answers along which the teacher's mean entropy is at most 2 nats; ``select.upper`` sets another bound."""
    lower, upper = bounds(settings, None, Bound(2.0))
    return Verdict(scores.entropy("scores_teacher"), lower, upper, above="unsure")
