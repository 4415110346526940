"""How the two truncated distributions are made comparable: the four readings of the paper's eq. (2).

With K the k stored tokens, M_T and M_S the mass of teacher and student on K:

    teacher   p / M_T on K              q full softmax      a true KL, >= 0; drives the student's tail to 0
    raw       p full softmax            q full softmax      M_T · (teacher) + M_T log M_T; may be negative
    both      p / M_T on K              q / M_S on K        no gradient outside K: the student's tail is free
    tail      p and 1 − M_T             q and 1 − M_S       exact KL of the distributions with the tail lumped
"""

from __future__ import annotations

from typing import Any

from mindspore import ops

from npd_ascend.models.elementwise import log
from npd_ascend.objectives.registry import Norm

LOWEST = -64.0
"""Teacher log-probs are not taken below this (the store's own floor): e^-64 weighs nothing, and -inf would make NaN."""
_LEAST_TAIL = 1e-7
"""Below this a tail mass is rounding error of float32; it then has no gradient."""


def on_support(norm: Norm, logp: Any, logq: Any) -> tuple[Any, Any]:
    """Log-measures of teacher and student on one support.

    Args:
        norm: ``train.loss.topk_norm``.
        logp: [R, k] teacher's full-vocabulary log-probs of the stored tokens.
        logq: [R, k] student's, of the same tokens.

    Returns:
        Two tensors [R, k], or [R, k + 1] with the tail last.
    """
    logp = logp.clip(LOWEST, None)
    if norm == "raw":
        return logp, logq
    if norm == "tail":
        return _with_tail(logp), _with_tail(logq)
    logp = logp - _log_sum(logp)
    return (logp, logq) if norm == "teacher" else (logp, logq - _log_sum(logq))


def _log_sum(logs: Any) -> Any:
    high = logs.max(axis=-1, keepdims=True)
    return high + log((logs - high).exp().sum(-1, keepdims=True))


def _with_tail(logs: Any) -> Any:
    tail = log((1.0 - logs.exp().sum(-1, keepdims=True)).clip(_LEAST_TAIL, None))
    return ops.concat((logs, tail), -1)
