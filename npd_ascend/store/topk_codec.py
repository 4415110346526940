"""Teacher top-k of one response token in as few bytes as keep the loss what it is.

A record is a little-endian bit stream of fixed width, so token t of a sample is found by multiplication:

    k ids            id_bits = ceil(log2 V) each, best first
    k log-probs      value_bits each, companded
    log-prob of the response token          16 bits, companded
    logZ             16 bits, IEEE half
    entropy          12 bits, linear over [0, ln V]

At k = 10, V = 153,376 and 12-bit values that is 43 bytes. Companding: a log-prob -x (0 <= x <= 64 nats) is stored
as round(sqrt(x / 64) * (2^b - 1)), so the error grows with the square root of x: at most sqrt(64 x) / (2^b - 1)
nats (12 bits: 0.002 at p = 1/e, 0.006 at p = 1e-4), and the order of the k values is kept. Smaller probabilities
than e^-64 are stored as e^-64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_NATS = 64.0
_SAMPLED_BITS = 16
_LOGZ_BITS = 16
_ENTROPY_BITS = 12


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

    ids: np.ndarray
    logprobs: np.ndarray
    logz: np.ndarray
    sampled: np.ndarray
    entropy: np.ndarray

    def __len__(self) -> int:
        return len(self.logz)

    def __getitem__(self, rows: slice) -> TopK:
        return TopK(self.ids[rows], self.logprobs[rows], self.logz[rows], self.sampled[rows], self.entropy[rows])


class TopKCodec:
    """Encodes and decodes records of one k, vocabulary and precision.

    Args:
        k: stored tokens a position.
        vocab_size: width of the logits; ids are below it.
        value_bits: bits a stored log-prob, 6 to 16.
    """

    def __init__(self, k: int, vocab_size: int, value_bits: int = 12):
        if not 1 <= k <= vocab_size:
            raise ValueError(f"k = {k} with a vocabulary of {vocab_size}")
        self.k, self.vocab_size, self.value_bits = k, vocab_size, value_bits
        self.id_bits = max(1, int(vocab_size - 1).bit_length())
        widths = [self.id_bits] * k + [value_bits] * k + [_SAMPLED_BITS, _LOGZ_BITS, _ENTROPY_BITS]
        self._fields = list(zip(np.concatenate([[0], np.cumsum(widths)[:-1]]).tolist(), widths, strict=True))
        self.record_bytes = (sum(widths) + 7) // 8
        self._max_entropy = max(float(np.log(vocab_size)), 1e-9)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopKCodec) and (self.k, self.vocab_size, self.value_bits) == (
            other.k,
            other.vocab_size,
            other.value_bits,
        )

    def encode(self, topk: TopK) -> np.ndarray:
        """Records, uint8 [T, record_bytes].

        Raises:
            ValueError: NaN, or an id outside the vocabulary (a fault of the caller).
        """
        ids = np.asarray(topk.ids)
        if ids.size and not (0 <= ids.min() and ids.max() < self.vocab_size):
            raise ValueError(f"token id outside 0..{self.vocab_size - 1}")
        if any(np.isnan(x).any() for x in (topk.logprobs, topk.logz, topk.sampled, topk.entropy)):
            raise ValueError("NaN in the annotation")
        values = _compand(topk.logprobs, self.value_bits)
        entropy = np.clip(topk.entropy / self._max_entropy, 0, 1) * ((1 << _ENTROPY_BITS) - 1)
        half = np.clip(topk.logz, -65000, 65000).astype(np.float16).view(np.uint16)
        columns = [*ids.astype(np.uint32).T, *values.T, _compand(topk.sampled, _SAMPLED_BITS), half, np.rint(entropy)]
        out = np.zeros((len(topk), self.record_bytes + 4), np.uint8)
        for (bit, width), column in zip(self._fields, columns, strict=True):
            word = column.astype(np.uint64) << np.uint64(bit & 7)
            for i in range(((bit & 7) + width + 7) // 8):
                out[:, (bit >> 3) + i] |= ((word >> np.uint64(8 * i)) & np.uint64(255)).astype(np.uint8)
        return np.ascontiguousarray(out[:, : self.record_bytes])

    def decode(self, records: np.ndarray) -> TopK:
        """Inverse of ``encode`` up to the precision named above; ids are exact."""
        T = len(records)
        padded = np.zeros((self.record_bytes + 8, T), np.uint8)
        padded[: self.record_bytes] = records.T  # one contiguous row a byte position: the field loop is then fast
        columns = [self._column(padded, bit, width) for bit, width in self._fields]
        k = self.k
        ids = np.stack(columns[:k], 1).astype(np.int32)
        logprobs = _expand(np.stack(columns[k : 2 * k], 1), self.value_bits)
        sampled, half, entropy = columns[2 * k :]
        return TopK(
            ids,
            logprobs,
            half.astype(np.uint16).view(np.float16).astype(np.float32),
            _expand(sampled, _SAMPLED_BITS),
            (entropy * np.float32(self._max_entropy / ((1 << _ENTROPY_BITS) - 1))).astype(np.float32),
        )

    @staticmethod
    def _column(padded: np.ndarray, bit: int, width: int) -> np.ndarray:
        at, shift = bit >> 3, bit & 7
        word = padded[at].astype(np.uint32)
        for i in range(1, (shift + width + 7) // 8):
            word |= padded[at + i].astype(np.uint32) << np.uint32(8 * i)
        return (word >> np.uint32(shift)) & np.uint32((1 << width) - 1)


def _compand(logprob: np.ndarray, bits: int) -> np.ndarray:
    x = np.clip(-np.asarray(logprob, np.float64), 0.0, MAX_NATS)
    return np.rint(np.sqrt(x / MAX_NATS) * ((1 << bits) - 1)).astype(np.uint32)


def _expand(code: np.ndarray, bits: int) -> np.ndarray:
    root = code.astype(np.float32) * np.float32(1.0 / ((1 << bits) - 1))
    return -(root * root) * np.float32(MAX_NATS)
