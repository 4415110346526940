"""Teacher top-k of response tokens in as few bytes as keep the loss what it is.

Per response token, in this order:

    k ids                 exact
    k log-probs           companded to ``value_bits``; the first, then the steps from one to the next
    log-prob of the response token: its place among the k; companded to 12 bits or more when it is not one of them
    logZ                  IEEE half without its last bit, within 0.15 %
    entropy               10 bits, linear over [0, ln V]

Here they become small integers; ``store.topk_blocks`` writes each column in a code fitted to the shard, so that a
frequent id takes 8 bits and not 18, and the step between two improbable tokens 5 and not 10.

Companding: a log-prob -x (0 <= x <= 64 nats) becomes round(sqrt(x / 64) * (2^b - 1)), so the error grows with the
square root of x: at most sqrt(64 x) / (2^b - 1) nats (10 bits: 0.008 at p = 1/e, 0.024 at p = 1e-4), where its
effect on the loss is multiplied by p. The order of the k values is kept. Probabilities below e^-64 become e^-64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array

MAX_NATS = 64.0
_SAMPLED_BITS = 12
_LOGZ_BITS = 15
_ENTROPY_BITS = 10


@dataclass
class TopK:
    """Teacher annotation of T response tokens.

    Attributes:
        ids: int32 [T, k], token ids, best first.
        logprobs: float32 [T, k], full-vocabulary log-probs, descending. The raw logit is ``logprobs + logz``.
        logz: float32 [T], log of the partition sum.
        sampled: float32 [T], log-prob of the response token.
        entropy: float32 [T], entropy over the full vocabulary, nats.
    """

    ids: Array
    logprobs: Array
    logz: Array
    sampled: Array
    entropy: Array

    def __len__(self) -> int:
        return len(self.logz)

    def __getitem__(self, rows: slice | Array) -> TopK:
        return TopK(self.ids[rows], self.logprobs[rows], self.logz[rows], self.sampled[rows], self.entropy[rows])


@dataclass(frozen=True)
class TopKFormat:
    """What all shards of a dataset have in common.

    Args:
        k: stored tokens a position.
        vocab_size: width of the logits; ids are below it.
        value_bits: bits a log-prob is rounded to, 6 to 16.

    Raises:
        ValueError: k does not fit the vocabulary, or bits out of range.
    """

    k: int
    vocab_size: int
    value_bits: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocab_size or not 6 <= self.value_bits <= 16:
            raise ValueError(f"k = {self.k} with a vocabulary of {self.vocab_size} and {self.value_bits} bits")

    @property
    def id_bits(self) -> int:
        """Bits of an id as it is."""
        return max(1, int(self.vocab_size - 1).bit_length())

    @property
    def planned_bytes(self) -> int:
        """Bytes a token to plan with: ids that no code makes shorter, and the other columns as they are usually."""
        return -(-(self.k * (self.id_bits + self.value_bits - 3) + 22) // 8)

    def columns(self) -> list[tuple[int, slice]]:
        """(raw bits, symbols of a token) of each alphabet, in the order of the symbols; see ``symbols``."""
        k, b = self.k, self.value_bits
        groups = [
            (self.id_bits, 1),
            (self.id_bits, k - 1),
            (b, 1),
            (b, min(k - 1, 1)),
            (b, max(k - 2, 0)),
            (self._sampled_raw + 1, 1),
            (_LOGZ_BITS, 1),
            (_ENTROPY_BITS, 1),
        ]
        out, at = [], 0
        for bits, width in groups:
            if width:
                out.append((bits, slice(at, at + width)))
                at += width
        return out

    def symbols(self, topk: TopK) -> Array:
        """Quantised annotation, uint32 [T, 2k + 3]: what the alphabets encode.

        Raises:
            ValueError: NaN, an id outside the vocabulary, or log-probs out of order (a fault of the caller).
        """
        ids = np.asarray(topk.ids)
        if ids.size and not (0 <= ids.min() and ids.max() < self.vocab_size):
            raise ValueError(f"token id outside 0..{self.vocab_size - 1}")
        if any(np.isnan(x).any() for x in (topk.logprobs, topk.logz, topk.sampled, topk.entropy)):
            raise ValueError("NaN in the annotation")
        k = self.k
        out = np.empty((len(topk), 2 * k + 3), np.uint32)
        out[:, :k] = ids
        codes = _compand(topk.logprobs, self.value_bits)
        if (codes[:, 1:] < codes[:, :-1]).any():
            raise ValueError("log-probs are not best first")
        out[:, k : 2 * k] = np.diff(codes, axis=1, prepend=np.uint32(0))
        same = codes == _compand(topk.sampled, self.value_bits)[:, None]
        beyond = _compand(topk.sampled, self._sampled_bits) + np.uint32(1 << self._sampled_raw)
        out[:, 2 * k] = np.where(same.any(1), same.argmax(1), beyond)
        half = np.clip(topk.logz, -65000, 65000).astype(np.float16).view(np.uint16).astype(np.uint32)
        out[:, 2 * k + 1] = (half + 1) >> 1
        out[:, 2 * k + 2] = np.rint(np.clip(topk.entropy / self._max_entropy, 0, 1) * ((1 << _ENTROPY_BITS) - 1))
        return out

    def values(self, symbols: Array, extras: bool = True) -> TopK:
        """Inverse of ``symbols`` up to the precision named above; without ``extras`` only ids and log-probs."""
        k = self.k
        codes = np.cumsum(symbols[:, k : 2 * k], axis=1, dtype=np.uint32)
        table = _expansion(self.value_bits)
        logprobs = table[np.minimum(codes, len(table) - 1)]
        ids = symbols[:, :k].astype(np.int32)
        if not extras:
            nothing = np.zeros(len(symbols), np.float32)
            return TopK(ids, logprobs, nothing, nothing, nothing)
        where = symbols[:, 2 * k]
        coded = _expansion(self._sampled_bits)[where & ((1 << self._sampled_bits) - 1)]
        place = np.take_along_axis(logprobs, np.minimum(where, k - 1)[:, None].astype(np.int64), 1)[:, 0]
        return TopK(
            ids,
            logprobs,
            (symbols[:, 2 * k + 1] << 1).astype(np.uint16).view(np.float16).astype(np.float32),
            np.where(where >> self._sampled_raw, coded, place),
            symbols[:, 2 * k + 2].astype(np.float32) * np.float32(self._max_entropy / ((1 << _ENTROPY_BITS) - 1)),
        )

    @property
    def _sampled_raw(self) -> int:
        """A symbol with this bit holds a log-prob, one without it a place among the k."""
        return max(self._sampled_bits, (self.k - 1).bit_length())

    @property
    def _sampled_bits(self) -> int:
        return max(_SAMPLED_BITS, self.value_bits)

    @property
    def _max_entropy(self) -> float:
        return max(float(np.log(self.vocab_size)), 1e-9)


def _compand(logprob: Array, bits: int) -> Array:
    x = np.clip(-np.asarray(logprob, np.float64), 0.0, MAX_NATS)
    codes: Array = np.rint(np.sqrt(x / MAX_NATS) * ((1 << bits) - 1)).astype(np.uint32)
    return codes


def _expansion(bits: int) -> Array:
    """[2^bits] float32, the log-prob of each code."""
    root = np.arange(1 << bits) / ((1 << bits) - 1)
    return (-MAX_NATS * root * root).astype(np.float32)
