"""Shards of teacher top-k records with random access by sample.

File: magic, length and CRC-32 of the header (u32 each), header (JSON: k, vocab_size, value_bits, samples, index_crc),
index, blocks. The index has for each sample the byte offset of its block (u64), its tokens (u32) and the CRC-32 of
the block (u32), so training reads samples in any order from a memory map and still finds a flipped bit.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np

from npd_ascend.errors import CorruptShard
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_codec import TopK, TopKCodec

_MAGIC = b"NPDTOPK1"
_HEAD = struct.Struct("<II")
_INDEX = np.dtype([("offset", "<u8"), ("tokens", "<u4"), ("crc", "<u4")])


def write_topk(dataset: Dataset, index: int, codec: TopKCodec, samples: list[TopK]) -> None:
    """Commits one shard; sample r of it belongs to row r of the rollouts shard of the same number."""
    table = np.zeros(len(samples), _INDEX)
    table["tokens"] = [len(s) for s in samples]
    table["offset"] = np.concatenate([[0], np.cumsum(table["tokens"])[:-1]]) * codec.record_bytes if samples else 0
    blocks = [codec.encode(s).tobytes() for s in samples]
    table["crc"] = [zlib.crc32(b) for b in blocks]
    tokens = int(table["tokens"].sum())
    header = json.dumps(
        {
            "k": codec.k,
            "vocab_size": codec.vocab_size,
            "value_bits": codec.value_bits,
            "samples": len(samples),
            "index_crc": zlib.crc32(table.tobytes()),
        }
    ).encode()

    def fill(f: IO[bytes]) -> None:
        f.write(_MAGIC + _HEAD.pack(len(header), zlib.crc32(header)) + header + table.tobytes())
        for block in blocks:
            f.write(block)

    dataset.write(index, len(samples), fill, tokens=tokens)


class TopKReader:
    """Reads samples of a finished ``topk`` dataset by ordinal.

    Args:
        dataset: as opened by ``Dataset.open(folder, "topk")``.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        rows = [r["rows"] for r in dataset.manifest["shards"]]
        self._first = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._open: dict[int, tuple[mmap.mmap, np.ndarray, int, TopKCodec]] = {}
        self._codec = self._shard(0)[3] if rows else None

    @property
    def k(self) -> int:
        """Stored tokens a position."""
        assert self._codec is not None, "the dataset is empty"
        return self._codec.k

    @property
    def vocab_size(self) -> int:
        """Width of the teacher's logits."""
        assert self._codec is not None, "the dataset is empty"
        return self._codec.vocab_size

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, ordinal: int) -> TopK:
        """Annotation of one sample.

        Raises:
            CorruptShard: its bytes are not those that were written.
        """
        return self.read_many([ordinal])[0]

    def read_many(self, ordinals: Sequence[int]) -> list[TopK]:
        """Annotations of several samples, decoded at once: for short samples that is many times faster.

        Raises:
            CorruptShard: bytes are not those that were written.
        """
        if not len(ordinals):
            return []
        assert self._codec is not None
        blocks = [self._block(int(o)) for o in ordinals]
        size = self._codec.record_bytes
        whole = self._codec.decode(np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, size))
        ends = np.cumsum([len(b) // size for b in blocks])
        return [whole[int(end) - len(b) // size : int(end)] for b, end in zip(blocks, ends, strict=True)]

    def _block(self, ordinal: int) -> bytes:
        """Records of a sample, verified."""
        index = int(np.searchsorted(self._first, ordinal, side="right")) - 1
        data, table, base, codec = self._shard(index)
        entry = table[ordinal - self._first[index]]
        start = base + int(entry["offset"])
        block = data[start : start + int(entry["tokens"]) * codec.record_bytes]
        if zlib.crc32(block) != entry["crc"]:
            raise CorruptShard(str(self.dataset.folder), index, f"checksum of sample {ordinal} differs")
        if codec != self._codec:
            raise CorruptShard(str(self.dataset.folder), index, "stored with another k, vocabulary or precision")
        return block

    def _shard(self, index: int) -> tuple[mmap.mmap, np.ndarray, int, TopKCodec]:
        if index not in self._open:
            self._open[index] = self._load(index)
        return self._open[index]

    def _load(self, index: int) -> tuple[mmap.mmap, np.ndarray, int, TopKCodec]:
        folder = str(self.dataset.folder)
        if self.dataset.record(index) is None:
            raise CorruptShard(folder, index, "its record is missing or its size is wrong")
        try:
            with open(self.dataset.path(index), "rb") as f:
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            at = len(_MAGIC) + _HEAD.size
            if data[: len(_MAGIC)] != _MAGIC:
                raise ValueError("no top-k shard")
            size, crc = _HEAD.unpack_from(data, len(_MAGIC))
            if zlib.crc32(data[at : at + size]) != crc:
                raise ValueError("header checksum differs")
            header = json.loads(data[at : at + size])
            codec = TopKCodec(header["k"], header["vocab_size"], header["value_bits"])
            at += size
            raw = data[at : at + header["samples"] * _INDEX.itemsize]
            if zlib.crc32(raw) != header["index_crc"]:
                raise ValueError("index checksum differs")
            table = np.frombuffer(raw, _INDEX)
            if len(table) != self.dataset.manifest["shards"][index]["rows"]:
                raise ValueError(f"{len(table)} samples")
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as e:
            raise CorruptShard(folder, index, f"{type(e).__name__}: {e}") from None
        return data, table, at + len(raw), codec
