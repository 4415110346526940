"""Weights by the teacher's perplexity, the "PPL-weighted" row of NPD's Table 3."""

from __future__ import annotations

import numpy as np

from npd_ascend.config.schema import SelectConfig
from npd_ascend.select.registry import Scores, Verdict, bounds, register

LEAST, MOST = 0.1, 10.0


@register("ppl_weighted", needs=("scores_teacher",))
def ppl_weighted(scores: Scores, settings: SelectConfig) -> Verdict:
    """Keeps all, with weight ∝ 1 / PPL = exp(−L(y|x)) under the teacher, 0.1 to 10 times the mean weight.

    NPD does not define its weights; this is an interpretation, and marked as one in the manifest. The value shown
    is the perplexity; configured bounds, if any, apply to it.
    """
    defined = np.isfinite(scores.teacher_cond)
    with np.errstate(over="ignore"):
        ppl = np.where(defined, np.exp(np.where(defined, scores.teacher_cond, 0.0)), np.nan)
    inverse = np.where(np.isfinite(ppl), 1 / ppl, 0.0)
    mean = inverse[inverse > 0].mean() if (inverse > 0).any() else 1.0
    lower, upper = bounds(settings, None, None)
    return Verdict(
        ppl,
        lower,
        upper,
        weights=np.clip(inverse / mean, LEAST, MOST),
        note="weight 1/PPL of the teacher is an interpretation: the paper does not define it",
    )
