"""What the comparison of two models along the student's answers says: KL, likelihood, exposure bias. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.store.traits import looping

if TYPE_CHECKING:
    from npd_ascend.exposure.divergence import Tokens

Compare = Callable[[Sequence[Array], Sequence[Array]], "list[Tokens]"]
_FIRST_BUCKET = 4


def measure(
    compare: Compare,
    prompts: Sequence[Array],
    rollouts: Sequence[Array],
    references: Sequence[Array] | None = None,
    start: Compare | None = None,
) -> dict[str, Any]:
    """On-policy divergence, likelihoods and excess accumulated error on held-out prompts.

    A prompt with several answers is given once for each.

    Args:
        compare: ``divergence.PairScorer`` of student and teacher.
        prompts: int32 ids.
        rollouts: the student's own answers.
        references: answers in which an expert's contexts stand: the teacher's own (what Arora et al. use), or the
            data's; None: what needs them is left out.
        start: the same of the student and the one that training began with, called after ``compare``'s last call; None:
            drift is left out.

    Returns:
        Flat dict, see ``summarise`` and ``by_answer``; with ``start`` also ``drift`` and ``drift_se``: KL(student ‖
        start) along the student's own answers, nats a token. Its root is the axis of arXiv:2609.32722, there from
        samples by the k3 estimator, whose expectation this is.
    """
    own = compare(prompts, rollouts)
    out = summarise(own, compare(prompts, references) if references is not None else None)
    if start is not None:
        out["drift"], out["drift_se"] = clustered_mean([t.kl_st for t in start(prompts, rollouts)])
    return out | by_answer(own, rollouts)


def summarise(own: Sequence[Tokens], expert: Sequence[Tokens] | None = None) -> dict[str, Any]:
    """Figures of one student.

    Means are over tokens. Exposure bias is the excess accumulated error of Arora et al. 2022 (arXiv:2204.01171), in
    the form of MiniLLM (arXiv:2306.08543, appendix): with p the teacher and q the student,

        R(l)   = Σ_{t<=l} E_{y_<t ~ q} KL(p ‖ q)(y_<t)            regret along the student's own answers
        l ε(l) = Σ_{t<=l} E_{y_<t ~ p} KL(p ‖ q)(y_<t)            the same along an expert's
        ExAccErr(l) = 100 · (R(l) − l ε(l)) / (l ε(l))            per cent; 0: no exposure bias

    The expectation over y_t is exact (full vocabulary), that over contexts is the mean of the answers that reach t.

    Args:
        own: along the student's answers.
        expert: along an expert's answers to the same prompts.

    Returns:
        ``samples``, ``tokens``; ``kl_st``, ``kl_ts`` (nats a token) and their standard errors ``kl_st_se``,
        ``kl_ts_se`` (clustered by answer); ``student_nll``, ``teacher_nll`` of the student's answers; ``buckets``
        (from-to, tokens from 0) with ``kl_st_by_position``, ``kl_ts_by_position``; with ``expert`` also ``nll`` (the
        student's of the expert's answers), ``expert_teacher_nll``, ``expert_kl_st``, ``expert_kl_ts``,
        ``expert_kl_ts_by_position``, ``exaccerr`` at ``exaccerr_length`` tokens, the largest length that a quarter of
        the answers of both kinds (and at least 8) reach, and ``exaccerr_by_length``. None where nothing is defined.
    """
    longest = max((len(t.kl_st) for t in [*own, *(expert or ())]), default=0)
    edges = _edges(longest)
    out: dict[str, Any] = {"samples": len(own), "tokens": sum(len(t.kl_st) for t in own)}
    for name in ("kl_st", "kl_ts"):
        values = [getattr(t, name) for t in own]
        out[name], out[f"{name}_se"] = clustered_mean(values)
        out[f"{name}_by_position"] = _bucketed(values, edges)
    out["student_nll"] = _negative(clustered_mean([t.student for t in own])[0])
    out["teacher_nll"] = _negative(clustered_mean([t.teacher for t in own])[0])
    out["buckets"] = [f"{a}-{b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    if expert is None:
        return out
    out["nll"] = _negative(clustered_mean([t.student for t in expert])[0])
    out["expert_teacher_nll"] = _negative(clustered_mean([t.teacher for t in expert])[0])
    out["expert_kl_st"] = clustered_mean([t.kl_st for t in expert])[0]
    out["expert_kl_ts"] = clustered_mean([t.kl_ts for t in expert])[0]
    out["expert_kl_ts_by_position"] = _bucketed([t.kl_ts for t in expert], edges)
    curve = excess_accumulated_error([t.kl_ts for t in own], [t.kl_ts for t in expert])
    out["exaccerr_length"] = len(curve)
    out["exaccerr"] = float(curve[-1]) if len(curve) else None
    at = [b for b in edges[1:] if b <= len(curve)]
    out["exaccerr_by_length"] = {str(b): float(curve[b - 1]) for b in at}
    return out


def by_answer(own: Sequence[Tokens], rollouts: Sequence[Array]) -> dict[str, Any]:
    """The same measures without answers that end in a loop, and answer by answer, for comparisons over prompts.

    Args:
        own: along the student's answers.
        rollouts: those answers, int32 ids.

    Returns:
        ``loops``: fraction of answers that end in a repeated cycle (``store.traits.looping``); ``kl_ts``, ``kl_st`` and
        ``teacher_nll`` with ``_no_loops`` behind the name, None where all answers loop; ``by_answer``: name -> one
        value an answer, linearised so that their mean is the mean over tokens: m + (S_i − m N_i) / (N / n).
    """
    tokens = np.concatenate(rollouts) if len(rollouts) else np.zeros(0, np.int32)
    loops = looping(tokens, np.cumsum([0, *map(len, rollouts)]))
    columns = {
        "kl_ts": [t.kl_ts for t in own],
        "kl_st": [t.kl_st for t in own],
        "teacher_nll": [-t.teacher for t in own],
    }
    out: dict[str, Any] = {"loops": float(loops.mean()) if len(loops) else None, "by_answer": {}}
    for name, values in columns.items():
        out[f"{name}_no_loops"] = clustered_mean([v for v, loop in zip(values, loops, strict=True) if not loop])[0]
        mean = clustered_mean(values)[0]
        if mean is not None:
            sums, counts = (np.array([f(v) for v in values], np.float64) for f in (np.sum, len))
            linear = mean + (sums - mean * counts) / counts.mean()
            out["by_answer"][name] = [round(float(x), 5) for x in linear]
    return out


def excess_accumulated_error(
    own: Sequence[Array], expert: Sequence[Array], share: float = 0.25, least: int = 8
) -> Array:
    """ExAccErr(l) for l = 1, 2, ..., see ``summarise``.

    Args:
        own: KL(teacher ‖ student) [T] along each of the student's answers.
        expert: the same along each of the expert's.
        share, least: l goes as far as that fraction of the answers of both kinds.

    Returns:
        float64 [l], per cent.
    """
    (mean_own, alive_own), (mean_expert, alive_expert) = _by_position(own), _by_position(expert)
    enough = min(len(alive_own), len(alive_expert))
    reach = (alive_own[:enough] >= max(least, share * len(own))) & (
        alive_expert[:enough] >= max(least, share * len(expert))
    )
    length = enough if reach.all() else int(np.argmin(reach))
    regret, per_expert = np.cumsum(mean_own[:length]), np.cumsum(mean_expert[:length])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(per_expert > 0, 100 * (regret - per_expert) / per_expert, 0.0)


def clustered_mean(values: Sequence[Array]) -> tuple[float | None, float | None]:
    """Mean over all tokens, and its standard error with tokens of one answer taken as dependent.

    The linearised variance of a ratio: Σ (S_i − m N_i)² · n / (n − 1) / N².
    """
    sums = np.array([np.sum(v, dtype=np.float64) for v in values])
    counts = np.array([len(v) for v in values], np.float64)
    total, n = counts.sum(), len(values)
    if not total:
        return None, None
    mean = float(sums.sum() / total)
    if n < 2:
        return mean, None
    return mean, float(np.sqrt(np.square(sums - mean * counts).sum() * n / (n - 1)) / total)


def _by_position(values: Sequence[Array]) -> tuple[Array, Array]:
    longest = max(map(len, values), default=0)
    total, alive = np.zeros(longest), np.zeros(longest)
    for v in values:
        total[: len(v)] += v
        alive[: len(v)] += 1
    return total / np.maximum(alive, 1), alive


def _bucketed(values: Sequence[Array], edges: list[int]) -> list[float | None]:
    out: list[float | None] = []
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        part = [v[a:b] for v in values if len(v) > a]
        out.append(float(np.concatenate(part).mean(dtype=np.float64)) if part else None)
    return out


def _edges(longest: int) -> list[int]:
    edges = [0, _FIRST_BUCKET]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return edges


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
