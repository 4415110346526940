"""What is noted of a token sequence when it is stored: a hash of its content, and whether it ends in a loop."""

from __future__ import annotations

import numpy as np

from npd_ascend.arrays import Array

LONGEST_CYCLE = 64
"""Tokens; longer repetitions, such as a paragraph over and over, do not count as loops."""
LEAST_REPEATED = 32
LEAST_CYCLES = 3
_BLOCK = 4096  # sequences at once: a few MB
_ROOT = 0x9E3779B97F4A7C15  # odd, so that its powers never vanish modulo 2^64


def looping(tokens: Array, offsets: Array) -> Array:
    """Whether sequences end in a loop: for some p <= 64, each of the last max(32, 3 p) tokens is the one p before it.

    That is a cycle of p tokens which occurs at least four times, up to the very end.

    Args:
        tokens: [T] integer ids of all sequences, one after the other.
        offsets: [N + 1] where each begins; an end token must have been taken off.

    Returns:
        [N] bool. Counting loops ("1. ... 2. ...") whose tokens change are not found.
    """
    reach = LONGEST_CYCLE + max(LEAST_REPEATED, LEAST_CYCLES * LONGEST_CYCLE)
    found = np.zeros(len(offsets) - 1, bool)
    for first in range(0, len(found), _BLOCK):
        starts, ends = offsets[first : first + _BLOCK], offsets[first + 1 : first + 1 + _BLOCK]
        starts = starts[: len(ends)]
        places = ends[:, None] - np.arange(reach, 0, -1)  # last tokens, the newest at the right
        rows = np.where(places >= starts[:, None], tokens[np.maximum(places, 0)] if len(tokens) else 0, -1)
        for p in range(1, LONGEST_CYCLE + 1):
            repeated = max(LEAST_REPEATED, LEAST_CYCLES * p)
            open_ = np.flatnonzero(~found[first : first + len(ends)] & (ends - starts >= repeated + p))
            # Most sequences fail at the last token.
            open_ = open_[rows[open_, -1] == rows[open_, -1 - p]]
            tail = rows[open_, reach - repeated - p :]
            found[first + open_[(tail[:, p:] == tail[:, :-p]).all(1)]] = True
    return found


def hashes(tokens: Array, offsets: Array) -> Array:
    """64-bit hashes of sequences: the same for the same tokens, wherever they stand.

    Args:
        tokens: [T] integer ids of all sequences, one after the other.
        offsets: [N + 1] where each begins.

    Returns:
        [N] int64.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, _ROOT, np.uint64))
        place = np.arange(len(tokens)) - np.repeat(starts, lengths)
        terms = _mixed(tokens.astype(np.uint64)) * powers[place]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        return _mixed(sums[offsets[1:]] - sums[starts] + lengths.astype(np.uint64)).view(np.int64)


def _mixed(x: Array) -> Array:
    """The finaliser of SplitMix64: any bit in changes about half of the bits out."""
    x = x + np.uint64(_ROOT)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
