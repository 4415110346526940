"""Less weight to tokens that surprise the student."""

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.objectives.registry import Tokens, mean_one, token_weight

SURPRISAL = 3.0
"""Nats at which the gate is half open."""


@token_weight("surprisal_gate", needs=("rollout_logprobs",))
def surprisal_gate(sample: Tokens, stats: None) -> Array:
    """1 / (1 + exp(s_t − 3)), s_t = −log p(y_t) under the generator, mean 1.

    A smooth form of the gate of Pedagogical RL (noahziems.com/pedagogical-rl), which only says that the weight goes
    to 0 for tokens surprising to the student.
    """
    if sample.rollout_logprobs is None:
        raise UserError("train.loss.token_weight surprisal_gate needs rollout log-probs, which reference answers lack")
    return mean_one(1.0 / (1.0 + np.exp(-sample.rollout_logprobs.astype(np.float64) - SURPRISAL)))
