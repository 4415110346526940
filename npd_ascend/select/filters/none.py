"""No filter: every answer that is not empty stays."""

from __future__ import annotations

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.registry import Scores, Verdict, register


@register("none")
def none(scores: Scores, settings: SelectConfig) -> Verdict:
    """Keeps all, needs no scores; bounds are without meaning."""
    return Verdict(values=None)
