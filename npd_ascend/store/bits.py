"""Columns of integers as variable-width bit fields that numpy decodes without a loop over symbols.

A symbol is written in two parts: its **class**, of fixed width, and a payload whose width the class names. Class c
holds the next 2^width(c) symbols of a table sorted by frequency; the last class takes what the table has not, as it
is. That comes within a few per cent of Huffman's code (Huffman 1952), and unlike it the place of every payload is
known from a running sum over the widths, so all symbols of many samples are decoded at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np

from npd_ascend.arrays import Array

MAX_CLASS_BITS = 4
MAX_BITS = 24


class Alphabet:
    """The code of one column, or of several that share it.

    Args:
        raw_bits: width of a symbol that is not in the table; symbols lie below ``2**raw_bits``.
        widths: payload width of each class but the last, strictly ascending; 2^n - 1 of them.
        table: symbols by falling frequency, at most sum(2^width) of them.

    Raises:
        ValueError: widths or table that no writer makes.
    """

    def __init__(self, raw_bits: int, widths: Sequence[int], table: Array):
        classes = len(widths) + 1
        self.class_bits = classes.bit_length() - 1
        if not 1 <= raw_bits <= MAX_BITS or classes != 1 << self.class_bits or self.class_bits > MAX_CLASS_BITS:
            raise ValueError(f"{classes} classes of at most {raw_bits} bits")
        if any(a >= b for a, b in zip([-1, *widths], [*widths, raw_bits], strict=True)):
            raise ValueError(f"class widths {widths}")
        sizes = [1 << w for w in widths]
        if len(table) > sum(sizes) or (len(table) and not 0 <= int(table.max()) < 1 << raw_bits):
            raise ValueError(f"a table of {len(table)} symbols")
        self.raw_bits, self.widths, self.table = raw_bits, tuple(int(w) for w in widths), table.astype(np.uint32)
        self.class_widths = np.array([*widths, raw_bits], np.uint8)
        """[classes] payload width."""
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """[classes] place of a class's first symbol in the table; the last class begins behind it."""

    @classmethod
    def fit(cls, counts: Array, raw_bits: int, table_bits: int) -> Alphabet:
        """The code with the fewest bits for symbols that occur ``counts`` times, its table included.

        Args:
            counts: [symbols] how often each occurs.
            raw_bits: of the symbols.
            table_bits: what an entry of the table costs.
        """
        order = np.argsort(-counts, kind="stable")
        used = int((counts > 0).sum())
        upto = np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)])
        total = int(upto[-1])
        best, chosen = total * raw_bits, list[int]()  # one class: symbols as they are
        for class_bits in range(1, MAX_CLASS_BITS + 1):
            tried, sizes = _width_choices(raw_bits, (1 << class_bits) - 1)
            if not len(tried):
                break
            ends = np.minimum(sizes, used)
            # A class that holds n symbols of w bits costs n * w; summed by parts over the running counts.
            steps = np.diff(tried, axis=1, append=raw_bits)
            cost = total * (raw_bits + class_bits) - np.einsum("ij,ij->i", upto[ends], steps)
            cost += ends[:, -1] * table_bits
            at = int(cost.argmin())
            if cost[at] < best:
                best, chosen = int(cost[at]), tried[at].tolist()
        return cls(raw_bits, chosen, order[: min(used, sum(1 << w for w in chosen))])

    def encode(self, symbols: Array) -> tuple[Array, Array]:
        """Class (uint8) and payload (uint32) of each symbol, in the shape of ``symbols``."""
        classes = np.full(1 << self.raw_bits, len(self.widths), np.uint8)
        payload = np.arange(1 << self.raw_bits, dtype=np.uint32)
        rank = np.arange(len(self.table))
        of_rank = np.searchsorted(self.starts, rank, side="right") - 1
        classes[self.table], payload[self.table] = of_rank, rank - self.starts[of_rank]
        return classes[symbols], payload[symbols]


@cache
def _width_choices(raw_bits: int, classes: int) -> tuple[Array, Array]:
    """All ascending widths of ``classes`` classes, [n, classes], and the symbols up to the end of each class."""
    tried = np.array(list(combinations(range(raw_bits), classes)), np.int64)
    return tried, np.cumsum(1 << tried, axis=1) if len(tried) else tried


def pack_into(words: Array, values: Array, starts: Array) -> None:
    """Writes values into a stream of little-endian 32-bit words.

    Args:
        words: [W] uint32, zero where something is written; two words longer than the stream.
        values: [n] unsigned, each below 2^32.
        starts: [n] int64 ascending, first bit of each; the values do not overlap.
    """
    if not len(values):
        return
    word = starts >> 5
    shifted = values.astype(np.uint64) << (starts & 31).astype(np.uint64)
    first = np.concatenate([[0], np.flatnonzero(np.diff(word)) + 1])
    shifted = np.bitwise_or.reduceat(shifted, first)
    word = word[first]
    words[word] |= shifted.astype(np.uint32)
    words[word + 1] |= (shifted >> np.uint64(32)).astype(np.uint32)


def windows(words: Array) -> Array:
    """[W - 1] uint64: at w the 64 bits that begin with word w, so a field of up to 33 bits is one look-up."""
    wide = words.astype(np.uint64)
    return wide[:-1] | (wide[1:] << np.uint64(32))
