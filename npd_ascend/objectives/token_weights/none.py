"""All tokens alike."""

import numpy as np

from npd_ascend.objectives.registry import Tokens, token_weight


@token_weight("none")
def none(tokens: Tokens) -> np.ndarray:
    """1 for every token."""
    return np.ones(tokens.count, np.float32)
