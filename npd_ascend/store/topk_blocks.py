"""Samples of quantised top-k as blocks of bits, in codes fitted to their shard.

A sample's block: the classes of all its tokens (``store.bits``), of fixed width, then the payloads, token by token,
filled up to whole bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.store.bits import Alphabet, pack_into, windows
from npd_ascend.store.topk_codec import TopK, TopKFormat

_TABLE_BITS = 32
_CHUNK = 4096


def fit(form: TopKFormat, symbols: Sequence[Array]) -> list[Alphabet]:
    """The alphabets, one for each of ``form.columns()``, that write these symbols in the fewest bytes.

    Args:
        form: what the symbols were made by.
        symbols: arrays [T, 2k + 3] as ``form.symbols`` makes them.
    """
    alphabets = []
    for bits, columns in form.columns():
        counts = np.zeros(1 << bits, np.int64)
        for part in symbols:
            counts += np.bincount(part[:, columns].reshape(-1), minlength=1 << bits)
        alphabets.append(Alphabet.fit(counts, bits, _TABLE_BITS))
    return alphabets


def encode(form: TopKFormat, alphabets: Sequence[Alphabet], symbols: Array, lengths: Array) -> tuple[Array, Array]:
    """Blocks of samples, one behind the other.

    Args:
        form: what the symbols were made by.
        alphabets: as ``fit`` made them.
        symbols: [sum of lengths, 2k + 3] uint32.
        lengths: [n] tokens of each sample.

    Returns:
        uint8 [bytes], and the bytes of each block, int64 [n].
    """
    total, fields = symbols.shape
    classes, payload = np.empty((total, fields), np.uint8), np.empty((total, fields), np.uint32)
    widths = np.empty((total, fields), np.uint8)
    for alphabet, (_, columns) in zip(alphabets, form.columns(), strict=True):
        classes[:, columns], payload[:, columns] = alphabet.encode(symbols[:, columns])
        widths[:, columns] = alphabet.class_widths[classes[:, columns]]
    class_at, class_bits = _class_places(form, alphabets)
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    upto = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])  # payload bits before each symbol
    size = (lengths * class_bits + upto[ends * fields] - upto[firsts * fields] + 7) >> 3
    start = (np.cumsum(size) - size) << 3
    words = np.zeros((int(size.sum()) + 3) // 4 + 2, np.uint32)
    t = np.arange(total) - np.repeat(firsts, lengths)
    class_start = np.repeat(start, lengths) + t * class_bits
    used = np.flatnonzero(np.diff(class_at, append=class_bits))
    pack_into(words, classes[:, used].reshape(-1), (class_start[:, None] + class_at[used]).reshape(-1))
    shift = start + lengths * class_bits - upto[firsts * fields]
    pack_into(words, payload.reshape(-1), upto[:-1] + np.repeat(shift, lengths * fields))
    return words.view(np.uint8)[: int(size.sum())], size


class Decoder:
    """Decodes blocks of several shards in one go: every look-up goes through the tables of the sample's own shard.

    Args:
        form: of all shards.
        shards: alphabets of each shard.

    Raises:
        ValueError: alphabets of another format.
    """

    def __init__(self, form: TopKFormat, shards: Sequence[Sequence[Alphabet]]):
        self.form = form
        columns = form.columns()
        if any([a.raw_bits for a in s] != [bits for bits, _ in columns] for s in shards):
            raise ValueError("alphabets of another format")
        n, self._fields = len(shards), 2 * form.k + 3
        self._class_at = np.zeros((n, self._fields), np.int64)
        self._class_bits = np.zeros(n, np.int64)
        self._class_masks = np.zeros((n, self._fields), np.uint64)
        self._row = np.zeros((n, self._fields), np.int64)  # first row of a field in the tables over (field, class)
        # Symbols outside an alphabet's table stand for themselves: they share the identity in front of all tables.
        tables = [np.arange(1 << max(bits for bits, _ in columns), dtype=np.uint32)]
        widths: list[Array] = []
        firsts: list[Array] = []
        rows, behind = 0, len(tables[0])
        for s, alphabets in enumerate(shards):
            self._class_at[s], self._class_bits[s] = _class_places(form, alphabets)
            for alphabet, (_, where) in zip(alphabets, columns, strict=True):
                self._class_masks[s, where] = (1 << alphabet.class_bits) - 1
                self._row[s, where] = rows
                widths.append(alphabet.class_widths)
                firsts.append(np.append(behind + alphabet.starts[:-1], 0))
                tables.append(alphabet.table)
                rows, behind = rows + len(alphabet.class_widths), behind + len(alphabet.table)
        self._table = np.concatenate(tables)
        self._widths = np.concatenate([np.zeros(0, np.uint8), *widths])
        self._masks = (np.uint64(1) << self._widths.astype(np.uint64)) - np.uint64(1)
        self._first = np.concatenate([np.zeros(0, np.int64), *firsts])

    def decode(self, blocks: Sequence[bytes], shards: Array, lengths: Array, extras: bool = True) -> TopK:
        """Annotation of all tokens, sample by sample.

        Args:
            blocks: of n samples.
            shards: [n] shard of each.
            lengths: [n] tokens of each.
            extras: also logZ, log-prob of the response token and entropy; else these are 0.
        """
        fields = self._fields if extras else 2 * self.form.k
        lengths = np.asarray(lengths, np.int64)
        size = np.fromiter(map(len, blocks), np.int64, len(blocks))
        data = b"".join(blocks)
        words = np.zeros((len(data) + 3) // 4 + 3, np.uint32)
        words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        wide, starts = windows(words), (np.cumsum(size) - size) << 3
        symbols = np.empty((int(lengths.sum()), fields), np.uint32)
        # Running sums go over samples, so that short ones cost no more than long ones; few samples at a time, so that
        # everything stays in the cache.
        ends, done = np.cumsum(lengths), 0
        while done < len(lengths):
            before = int(ends[done] - lengths[done])
            until = max(done + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
            part = slice(done, until)
            symbols[before : int(ends[until - 1])] = self._symbols(
                wide, starts[part], lengths[part], np.asarray(shards)[part], fields
            )
            done = until
        return self.form.values(symbols, extras)

    def _symbols(self, wide: Array, starts: Array, lengths: Array, shards: Array, fields: int) -> Array:
        """[tokens, fields] uint32 of some samples whose blocks begin at the bits ``starts``."""
        tokens, firsts = int(lengths.sum()), np.cumsum(lengths) - lengths
        of = np.repeat(np.arange(len(lengths)), lengths)
        shard, bits = shards[of], self._class_bits[shards]
        at = self._class_at[shard]
        at += (starts[of] + (np.arange(tokens) - firsts[of]) * bits[of])[:, None]
        row = _field(wide, at, self._class_masks[shard]).view(np.int64)
        row += self._row[shard]
        upto = np.zeros(tokens * self._fields + 1, np.int64)
        np.cumsum(self._widths[row].reshape(-1), out=upto[1:])
        shift = starts + lengths * bits - upto[firsts * self._fields]
        row = row[:, :fields]
        at = upto[:-1].reshape(tokens, self._fields)[:, :fields] + shift[of][:, None]
        place = _field(wide, at, self._masks[row]).view(np.int64)
        place += self._first[row]
        return self._table[place]


def _field(wide: Array, at: Array, masks: Array) -> Array:
    """The bits under ``masks`` at the bit places ``at``, uint64."""
    out: Array = wide[at >> 5]
    out >>= (at & 31).view(np.uint64)
    out &= masks
    return out


def _class_places(form: TopKFormat, alphabets: Sequence[Alphabet]) -> tuple[Array, int]:
    """First bit of each symbol's class in a token's classes, [2k + 3], and the bits of them all."""
    widths = [c.stop - c.start for _, c in form.columns()]
    bits = np.repeat([a.class_bits for a in alphabets], widths)
    ends = np.cumsum(bits)
    return ends - bits, int(ends[-1])
