"""A token weight in two phases: tokens that the student found less likely than most count twice."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from npd_ascend.objectives.registry import Tokens, mean_one, token_weight


def median(samples: Iterable[Tokens]) -> float:
    """Median log-prob over all tokens that the generation trains on."""
    known = [s.rollout_logprobs for s in samples if s.rollout_logprobs is not None]
    return float(np.median(np.concatenate(known))) if known else 0.0


@token_weight("rare_first", needs=("rollout_logprobs",), stats=median)
def rare_first(sample: Tokens, stats: float) -> np.ndarray:
    """2 below the median and 1 from there on, mean 1."""
    assert sample.rollout_logprobs is not None
    return mean_one(np.where(sample.rollout_logprobs < stats, 2.0, 1.0))
