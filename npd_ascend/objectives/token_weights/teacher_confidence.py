"""FiRe-OPD's weight by the teacher's confidence."""

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.objectives.registry import Tokens, mean_one, token_weight


@token_weight("teacher_confidence", needs=("topk",))
def teacher_confidence(sample: Tokens, stats: None) -> Array:
    """1 + c_t with c_t = clip(1 − H_T(t) / max H_T, 0, 1) over the sample, mean 1 (arXiv:2606.02684, α = 1, β = 0).

    The paper's second factor needs the student's live entropy and is left out.
    """
    if sample.teacher is None:
        raise UserError("train.loss.token_weight teacher_confidence needs the teacher's annotation; run annotate first")
    entropy = sample.teacher.entropy.astype(np.float64)
    highest = entropy.max(initial=0.0)
    if highest == 0:
        return np.ones(len(entropy), np.float32)
    return mean_one(1.0 + np.clip(1.0 - entropy / highest, 0.0, 1.0))
