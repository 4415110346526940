"""What annotation keeps of a chunk of logits, in numpy: log-sum-exp, entropy, the sampled token, exact top-k.

On the CPU this is several times faster than the engine's operators: blocks of rows stay in the cache, and top-k looks
at a small part of the vocabulary only.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from npd_ascend.store.topk_codec import TopK

_BLOCK_VALUES = 1 << 17
_pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))


def summarise(logits: np.ndarray, targets: np.ndarray, k: int) -> TopK:
    """Statistics of each row's softmax.

    With m the row's maximum and Z = Σ exp(l - m): logZ = m + ln Z, entropy = ln Z - Σ exp(l - m)(l - m) / Z.

    Args:
        logits: [R, V] float32.
        targets: [R] token ids whose log-probs are wanted.
        k: best tokens to keep, 0..V; of equal logits any may be kept, which one depends on the row alone.

    Returns:
        Annotation of R tokens; with NaN or infinite logits its values are not finite.
    """
    rows, vocab = logits.shape
    out = TopK(np.empty((rows, k), np.int32), np.empty((rows, k), np.float32), np.empty(rows, np.float32),
               np.empty(rows, np.float32), np.empty(rows, np.float32))
    step = max(1, _BLOCK_VALUES // vocab)
    starts = range(0, rows, step)
    list(_pool.map(lambda a: _block(logits[a: a + step], targets[a: a + step], k, out[a: a + step]), starts))
    return out


def top_k(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row, descending.

    Columns are dealt into C groups (column j into group j mod C). The k best values lie in the k groups whose maxima
    are largest, so only k · V / C candidates are sorted after one streaming pass for the maxima.

    Args:
        values: [R, V].
        k: 1..V.

    Returns:
        ids int32 [R, k] and values [R, k].
    """
    rows, vocab = values.shape
    groups = _groups(vocab, k)
    if groups <= k:
        ids = np.argsort(-values, axis=1, kind="stable")[:, :k]
        return ids.astype(np.int32), np.take_along_axis(values, ids, 1)
    depth = vocab // groups
    even = depth * groups
    maxima = values[:, :even].reshape(rows, depth, groups).max(1)
    best = np.sort(np.argpartition(maxima, groups - k, axis=1)[:, groups - k:], axis=1)
    ids = (best[:, None, :] + (np.arange(depth) * groups)[:, None]).reshape(rows, depth * k)
    rest = np.broadcast_to(np.arange(even, vocab), (rows, vocab - even))
    ids = np.concatenate([ids, rest], 1)
    found = np.take_along_axis(values, ids, 1)
    order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, 1).astype(np.int32), np.take_along_axis(found, order, 1)


def _groups(vocab: int, k: int) -> int:
    # Cost of a row: C for the partition of the maxima, k V / C candidates to sort, each some four times dearer.
    return min(vocab, 64 * round(2 * (k * vocab) ** 0.5 / 64) or 64)


def _block(logits: np.ndarray, targets: np.ndarray, k: int, out: TopK) -> None:
    peak = logits.max(1, keepdims=True)
    shifted = logits - peak
    exp = np.exp(shifted)
    z = exp.sum(1)
    log_z = np.log(z)
    out.logz[:] = peak[:, 0] + log_z
    out.entropy[:] = np.maximum(log_z - np.einsum("ij,ij->i", exp, shifted) / z, 0.0)
    out.sampled[:] = np.take_along_axis(shifted, targets[:, None], 1)[:, 0] - log_z
    if k:
        out.ids[:], best = top_k(shifted, k)
        out.logprobs[:] = best - log_z[:, None]
