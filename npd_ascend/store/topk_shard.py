"""Shards of teacher top-k with random access by sample.

File: magic, length and CRC-32 of the header (u32 each), header (JSON: version, k, vocab_size, value_bits, samples,
class widths and table size of each alphabet, CRC-32 of index and tables), index, tables (u32), blocks. The index has
for each sample the byte offset of its block (u64), its tokens (u32) and the CRC-32 of the block (u32); one more entry
marks the end. So training reads samples in any order and still finds a flipped bit.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import CorruptShard
from npd_ascend.store.bits import Alphabet
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_blocks import Decoder, encode, fit
from npd_ascend.store.topk_codec import TopK, TopKFormat

_MAGIC = b"NPDTOPK2"
_HEAD = struct.Struct("<II")
_INDEX = np.dtype([("offset", "<u8"), ("tokens", "<u4"), ("crc", "<u4")])
_TABLE = np.dtype("<u4")
_GROUP_TOKENS = 1 << 15


def write_topk(dataset: Dataset, index: int, form: TopKFormat, samples: list[TopK]) -> None:
    """Commits one shard; sample r of it belongs to row r of the rollouts shard of the same number.

    Its record has the number of ``tokens`` and their summed probability ``mass`` inside the stored ids.

    Raises:
        ValueError: an annotation that no model makes (see ``TopKFormat.symbols``).
    """
    lengths = np.array([len(s) for s in samples], np.int64)
    groups = _groups(lengths)
    symbols = [_symbols(form, samples[a:b]) for a, b in groups]
    alphabets = fit(form, symbols)
    table = np.zeros(len(samples) + 1, _INDEX)
    table["tokens"][:-1] = lengths
    blocks: list[memoryview] = []
    offset = 0
    for (a, b), part in zip(groups, symbols, strict=True):
        data, size = encode(form, alphabets, part, lengths[a:b])
        ends = np.cumsum(size)
        table["offset"][a:b] = offset + ends - size
        view = memoryview(data.data)
        table["crc"][a:b] = [zlib.crc32(view[e - n : e]) for e, n in zip(ends.tolist(), size.tolist(), strict=True)]
        blocks.append(view)
        offset += len(data)
    table["offset"][-1] = offset
    after = table.tobytes() + b"".join(a.table.astype(_TABLE).tobytes() for a in alphabets)
    header = json.dumps(
        {
            "version": 2,
            "k": form.k,
            "vocab_size": form.vocab_size,
            "value_bits": form.value_bits,
            "samples": len(samples),
            "alphabets": [{"widths": a.widths, "table": len(a.table)} for a in alphabets],
            "crc": zlib.crc32(after),
        }
    ).encode()

    def fill(f: IO[bytes]) -> None:
        f.write(_MAGIC + _HEAD.pack(len(header), zlib.crc32(header)) + header + after)
        for block in blocks:
            f.write(block)

    mass = sum(float(np.exp(s.logprobs).sum(dtype=np.float64)) for s in samples)
    dataset.write(index, len(samples), fill, tokens=int(lengths.sum()), mass=mass)


def _groups(lengths: Array) -> list[tuple[int, int]]:
    """Spans of samples with a bounded number of tokens, so that what encoding needs stays small."""
    cuts = np.searchsorted(np.cumsum(lengths), np.arange(_GROUP_TOKENS, int(lengths.sum()) + 1, _GROUP_TOKENS)) + 1
    edges = np.unique(np.concatenate([[0], np.minimum(cuts, len(lengths)), [len(lengths)]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _symbols(form: TopKFormat, samples: list[TopK]) -> Array:
    names = ("ids", "logprobs", "logz", "sampled", "entropy")
    return form.symbols(TopK(*(np.concatenate([getattr(s, n) for s in samples]) for n in names)))


@dataclass(frozen=True)
class _Shard:
    """Where things stand in a shard.

    Attributes:
        form: of its records.
        alphabets: its codes.
        offsets: [samples + 1] int64, first byte of each block in the file.
        tokens: [samples] int64.
        crcs: [samples] of the blocks.
    """

    form: TopKFormat
    alphabets: list[Alphabet]
    offsets: Array
    tokens: Array
    crcs: Array


class TopKReader:
    """Reads samples of a finished ``topk`` dataset by ordinal; 20 bytes a sample stay in memory, and the tables.

    Args:
        dataset: as opened by ``Dataset.open(folder, "topk")``.

    Raises:
        CorruptShard: a shard's header, index or tables are not those that were written.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        rows = [r["rows"] for r in dataset.manifest["shards"]]
        self._first = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._shards = [self._load(i) for i in range(len(rows))]
        for i, shard in enumerate(self._shards):
            if shard.form != self._shards[0].form:
                raise CorruptShard(str(dataset.folder), i, "stored with another k, vocabulary or precision")
        self._decoder = Decoder(self.form, [s.alphabets for s in self._shards]) if rows else None

    @property
    def form(self) -> TopKFormat:
        """k, vocabulary and precision."""
        assert self._shards, "the dataset is empty"
        return self._shards[0].form

    @property
    def k(self) -> int:
        """Stored tokens a position."""
        return self.form.k

    @property
    def vocab_size(self) -> int:
        """Width of the teacher's logits."""
        return self.form.vocab_size

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, ordinal: int) -> TopK:
        """Annotation of one sample.

        Raises:
            CorruptShard: its bytes are not those that were written.
        """
        return self.read_many([ordinal])[0]

    def read_many(self, ordinals: Sequence[int] | Array, extras: bool = True) -> tuple[TopK, Array]:
        """Annotations of several samples, decoded at once: for short samples that is many times faster.

        Args:
            ordinals: of n samples, in any order.
            extras: also logZ, log-prob of the response token and entropy; else these are 0.

        Returns:
            The annotation of all their tokens, sample by sample, and the tokens of each, int64 [n].

        Raises:
            CorruptShard: bytes are not those that were written.
        """
        assert self._decoder is not None, "the dataset is empty"
        ordinals = np.asarray(ordinals, np.int64)
        of = np.searchsorted(self._first, ordinals, side="right") - 1
        rows = ordinals - self._first[of]
        blocks: list[bytes] = [b""] * len(ordinals)
        lengths = np.zeros(len(ordinals), np.int64)
        by_shard = np.argsort(of, kind="stable")
        for places in np.split(by_shard, np.flatnonzero(np.diff(of[by_shard])) + 1):
            if len(places):
                index = int(of[places[0]])
                lengths[places] = self._shards[index].tokens[rows[places]]
                self._read_blocks(index, rows[places], places, blocks)
        return self._decoder.decode(blocks, of, lengths, extras), lengths

    def _read_blocks(self, index: int, rows: Array, places: Array, blocks: list[bytes]) -> None:
        """Blocks of some samples of one shard, verified, each into its place."""
        shard = self._shards[index]
        begin, end, crcs = (a.tolist() for a in (shard.offsets[rows], shard.offsets[rows + 1], shard.crcs[rows]))
        with self._file(index) as fd:
            for row, place, a, b, crc in zip(rows.tolist(), places.tolist(), begin, end, crcs, strict=True):
                block = os.pread(fd, b - a, a)
                if zlib.crc32(block) != crc:
                    sample = int(self._first[index]) + row
                    raise CorruptShard(str(self.dataset.folder), index, f"checksum of sample {sample} differs")
                blocks[place] = block

    @contextmanager
    def _file(self, index: int) -> Iterator[int]:
        # Opened again each time, some 10 us: thousands of shards must not need thousands of open files.
        try:
            fd = os.open(self.dataset.path(index), os.O_RDONLY)
        except OSError as e:
            raise CorruptShard(str(self.dataset.folder), index, e.strerror or "cannot be read") from None
        try:
            yield fd
        except OSError as e:
            raise CorruptShard(str(self.dataset.folder), index, e.strerror or "cannot be read") from None
        finally:
            os.close(fd)

    def _load(self, index: int) -> _Shard:
        folder = str(self.dataset.folder)
        if self.dataset.record(index) is None:
            raise CorruptShard(folder, index, "its record is missing or its size is wrong")
        try:
            with open(self.dataset.path(index), "rb") as f:
                shard = _parse(f)
                size = f.seek(0, os.SEEK_END)
            if len(shard.tokens) != self.dataset.manifest["shards"][index]["rows"]:
                raise ValueError(f"{len(shard.tokens)} samples")
            if shard.offsets[-1] != size or (np.diff(shard.offsets) < 0).any():
                raise ValueError("blocks do not end where the file does")
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as e:
            raise CorruptShard(folder, index, f"{type(e).__name__}: {e}") from None
        return shard


def _parse(f: IO[bytes]) -> _Shard:
    if f.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("no top-k shard of this format")
    size, crc = _HEAD.unpack(f.read(_HEAD.size))
    whole = os.fstat(f.fileno()).st_size
    text = f.read(min(size, whole))
    if zlib.crc32(text) != crc:
        raise ValueError("header checksum differs")
    header = json.loads(text)
    form = TopKFormat(header["k"], header["vocab_size"], header["value_bits"])
    entries, sizes = int(header["samples"]) + 1, [int(a["table"]) for a in header["alphabets"]]
    if entries < 1 or min(sizes) < 0 or len(sizes) != len(form.columns()):
        raise ValueError("impossible sizes")
    after = f.read(min(entries * _INDEX.itemsize + sum(sizes) * _TABLE.itemsize, whole))
    if zlib.crc32(after) != header["crc"]:
        raise ValueError("index checksum differs")
    index = np.frombuffer(after, _INDEX, entries)
    tables = np.split(np.frombuffer(after, _TABLE, offset=index.nbytes), np.cumsum(sizes)[:-1])
    alphabets = [
        Alphabet(bits, a["widths"], table)
        for (bits, _), a, table in zip(form.columns(), header["alphabets"], tables, strict=True)
    ]
    return _Shard(
        form,
        alphabets,
        f.tell() + index["offset"].astype(np.int64),
        index["tokens"][:-1].astype(np.int64),
        index["crc"][:-1],
    )
