"""All tokens alike."""

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.objectives.registry import Tokens, token_weight


@token_weight("none", uniform=True)
def none(sample: Tokens, stats: None) -> Array:
    """1 for every token."""
    return np.ones(sample.count, np.float32)
