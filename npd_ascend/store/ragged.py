"""List columns of a dataset for random access: in memory when small, else in a flat file beside the shards.

The flat file holds the values of all shards and then the offsets, and is mapped: pages that are not in use do not
count, and the ranks of a node share them. It is made from the shards when it is first needed, carries their checksums,
and is checked itself whenever it is opened; so it may be deleted at any time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from npd_ascend.arrays import Array
from npd_ascend.store.atomic import atomic_file, read_sealed, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import digest

IN_MEMORY_BYTES = 1 << 28
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Ragged:
    """Lists of unequal length, one behind the other.

    Attributes:
        values: [sum of lengths].
        offsets: [N + 1] int64.
    """

    values: Array
    offsets: Array

    def __getitem__(self, i: int) -> Array:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: Array, counts: Array) -> Array:
        """The first ``counts`` [n] values of each of the lists ``rows`` [n], one behind the other."""
        return np.asarray(self.values[concat_ranges(self.offsets[rows], counts)])

    def lengths_of(self, rows: Array) -> Array:
        """[n] int64."""
        lengths: Array = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Ragged:
        """A list column; null lists are empty."""
        values, lengths = _parts(column)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @classmethod
    def read(cls, dataset: Dataset, column: str) -> Ragged:
        """A list column over all shards of a finished dataset; null lists are empty.

        Raises:
            CorruptShard: a shard's checksum differs.
        """
        if (small := _in_memory(dataset, column)) is not None:
            return cls(*small)
        path = dataset.folder / f"{column}.flat"
        seal = path.with_name(path.name + ".json")
        shards = digest([r["sha256"] for r in dataset.manifest["shards"]])
        with FileLock(str(path) + ".lock"):  # one rank makes it, the others wait and use it
            made = read_sealed(seal)
            if made is None or made.get("shards") != shards or not _intact(path, made):
                made = {"shards": shards, **_make(path, dataset, column)}
                write_sealed(seal, made)
        count, rows = made["values"], made["rows"]
        dtype = np.dtype(made["dtype"])
        values = np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)
        return cls(values, np.fromfile(path, np.int64, rows + 1, offset=made["offsets_at"]))


def concat_ranges(starts: Array, counts: Array) -> Array:
    """``count`` numbers from ``start`` on for each of n pairs, one run behind the other: int64 [sum of counts]."""
    counts = np.asarray(counts, np.int64)
    before = np.cumsum(counts) - counts
    found: Array = np.arange(int(counts.sum())) + np.repeat(np.asarray(starts, np.int64) - before, counts)
    return found


def _parts(column: pa.ChunkedArray) -> tuple[Array, Array]:
    """Values and lengths of a list column."""
    return pc.list_flatten(column).to_numpy(), pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def _in_memory(dataset: Dataset, column: str) -> tuple[Array, Array] | None:
    """Values and offsets; None when they are large. What the files take says little: repeated values take nothing."""
    if sum(r["bytes"] for r in dataset.manifest["shards"]) > IN_MEMORY_BYTES:
        return None
    parts, size = [], 0
    for table in dataset.iter_tables([column]):
        parts.append(_parts(table[column]))
        size += parts[-1][0].nbytes
        if size > IN_MEMORY_BYTES:
            return None
    values = np.concatenate([p[0] for p in parts]) if parts else np.empty(0, np.int32)
    lengths = np.concatenate([np.empty(0, np.int64), *(p[1] for p in parts)])
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _make(path: Path, dataset: Dataset, column: str) -> dict[str, Any]:
    crc, count, dtype = 0, 0, "int32"
    lengths: list[Array] = []
    with atomic_file(path) as f:

        def put(data: Array) -> None:
            nonlocal crc
            raw = np.ascontiguousarray(data).tobytes()
            crc = zlib.crc32(raw, crc)
            f.write(raw)

        for table in dataset.iter_tables([column]):
            values, sizes = _parts(table[column])
            dtype = values.dtype.str if len(values) else dtype
            lengths.append(sizes)
            count += len(values)
            put(values)
        put(np.zeros(-f.tell() % 8, np.uint8))
        at = f.tell()
        put(np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64))
    rows = sum(map(len, lengths))
    return {"crc": crc, "values": count, "rows": rows, "dtype": dtype, "offsets_at": at}


def _intact(path: Path, made: dict[str, Any]) -> bool:
    crc = 0
    try:
        with open(path, "rb") as f:
            while block := f.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError:
        return False
    return crc == made.get("crc")
