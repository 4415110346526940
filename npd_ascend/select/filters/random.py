"""A control for other filters: samples are kept by chance."""

from __future__ import annotations

import numpy as np

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.registry import Bound, Scores, Verdict, bounds, register

KEPT = 0.962
"""The paper's keep rate (arXiv:2605.05940, Table 13)."""


@register("random")
def random(scores: Scores, settings: SelectConfig) -> Verdict:
    """Keeps ``upper_quantile`` of the samples (96.2 % if not set), whatever the models say of them.

    Values are uniform in [0, 1) and depend only on a sample's place, so a run that is made again keeps the same ones.
    """
    lower, upper = bounds(settings, None, Bound(KEPT, quantile=True))
    return Verdict(np.random.default_rng(0).random(len(scores.tokens)), lower, upper, above="by chance")
