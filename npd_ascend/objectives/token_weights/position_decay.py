"""Less weight to late tokens, whose prefix has drifted furthest from what the teacher knows."""

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.objectives.registry import Tokens, mean_one, token_weight

HALF_LIFE = 1024.0
"""Tokens after which the weight has halved."""


@token_weight("position_decay")
def position_decay(sample: Tokens, stats: None) -> Array:
    """2^(−t / half-life), mean 1: a cheap stand-in for the fidelity decay of arXiv:2605.30833."""
    return mean_one(np.exp2(-np.arange(sample.count) / HALF_LIFE))
