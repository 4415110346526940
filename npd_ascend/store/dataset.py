"""A stage's output: a folder of shards and a manifest.

``shard-00007.parquet`` (or ``.topk``) holds data, ``shard-00007.json`` commits it: fingerprint, rows, bytes,
SHA-256. ``manifest.json`` is written when all shards are there and commits the dataset. So a kill loses at most
the shard in flight, and a shard made from other inputs is never taken for one of these. Records and manifest carry
a hash of themselves: a damaged one counts as absent and is made again. The manifest holds all records, so of a
finished dataset it alone is read, without pyarrow, so that a dry run need not import it.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.store.atomic import atomic_file, read_sealed, sync_folder, write_sealed
from npd_ascend.store.identity import SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
_READERS, _WRITERS = 2, 4
_T = TypeVar("_T")
_R = TypeVar("_R")


class Dataset:
    """Shards of one kind in one folder.

    Args:
        folder: where; made on the first write.
        kind: ``prompts``, ``rollouts``, ``scores``, ``rewards``, ``selection``, ``packs`` (Parquet) or ``topk``
            (binary).
        fingerprint: identity of all inputs (see ``identity.fingerprint``); shards with another one do not count.
        drafts: folder of files in the making; None: they are beside their place.
    """

    def __init__(self, folder: Path, kind: str, fingerprint: str, drafts: Path | None = None):
        self.folder, self.kind, self.fingerprint, self.drafts = Path(folder), kind, fingerprint, drafts
        self.suffix = ".topk" if kind == "topk" else ".parquet"
        self._manifest: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: Path, kind: str) -> Dataset:
        """A finished dataset, for reading.

        Raises:
            UserError: no manifest, of another kind or schema version, or not readable.
        """
        manifest = _manifest(Path(folder))
        if manifest is None and (Path(folder) / MANIFEST).exists():
            raise UserError(f"{folder}: {MANIFEST} is damaged; run the same command again to rebuild it")
        if manifest is None:
            raise UserError(f"{folder}: no finished {kind} there; run the stage that makes it first")
        if manifest.get("kind") != kind:
            raise UserError(f"{folder}: holds {manifest.get('kind')}, expected {kind}")
        if manifest.get("schema") != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: written by format version {manifest.get('schema')}, this program reads "
                f"{SCHEMA_VERSION}; use a new run.dir"
            )
        self = cls(Path(folder), kind, manifest["fingerprint"])
        self._manifest = manifest
        return self

    # ---- state

    @property
    def complete(self) -> bool:
        """Whether the manifest exists and belongs to these inputs."""
        manifest = _manifest(self.folder)
        if manifest is None or manifest.get("fingerprint") != self.fingerprint:
            return False
        self._manifest = manifest
        return True

    @property
    def manifest(self) -> dict[str, Any]:
        """The committed manifest: ``shards`` (list of records), ``rows``, ``extra``, ``fingerprint``."""
        if self._manifest is None and not self.complete:
            raise UserError(f"{self.folder}: {self.kind} is not finished")
        assert self._manifest is not None
        return self._manifest

    @property
    def shards(self) -> int:
        """Number of shards of the finished dataset."""
        return len(self.manifest["shards"])

    @property
    def rows(self) -> int:
        """Rows of the finished dataset."""
        return int(self.manifest["rows"])

    @property
    def extra(self) -> dict[str, Any]:
        """What the stage noted in the manifest beside the shards."""
        extra: dict[str, Any] = self.manifest["extra"]
        return extra

    def record(self, index: int) -> dict[str, Any] | None:
        """Commit record of a shard of these inputs whose data file has the right size, else None."""
        if self._manifest is not None:
            records = self._manifest["shards"]
            record = records[index] if index < len(records) else None
        else:
            record = read_sealed(self._record_path(index))
        if record is None or record.get("fingerprint") != self.fingerprint or record.get("schema") != SCHEMA_VERSION:
            return None
        if not isinstance(record.get("rows"), int) or not isinstance(record.get("meta"), dict):
            return None
        try:
            return record if self.path(index).stat().st_size == record.get("bytes") else None
        except OSError:
            return None

    def missing(self, shards: int) -> list[int]:
        """Numbers of the shards that are still to be made, out of ``shards``."""
        return [i for i in range(shards) if self.record(i) is None]

    def path(self, index: int) -> Path:
        """Data file of a shard."""
        return self.folder / f"shard-{index:05d}{self.suffix}"

    # ---- writing

    def write_table(self, index: int, table: pa.Table, *, sync: bool = True, **meta: Any) -> None:
        """Commits one Parquet shard; the table is cast to the kind's schema (missing ones are an error
        but for ``schemas.OPTIONAL``)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from npd_ascend.store.schemas import encodings, schema_of, with_traits

        schema = schema_of(self.kind, table)
        table = with_traits(self.kind, table).select(schema.names).cast(schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True, write_statistics=False, **encodings(schema))
        data = sink.getvalue()

        def fill(f: IO[bytes]) -> None:
            f.write(data)

        self.write(index, table.num_rows, fill, sync=sync, **meta)

    def write_tables(self, tables: Iterable[tuple[int, pa.Table]]) -> Iterator[int]:
        """``write_table`` of many (number, table) that are quickly made again: several at once, because most of it is
        waiting for the disk, and their records are durable with the manifest only.

        Yields:
            Rows of each shard that is committed, in the order given.
        """

        def commit(item: tuple[int, pa.Table]) -> int:
            self.write_table(*item, sync=False)
            return int(item[1].num_rows)

        yield from _ahead(commit, tables, _WRITERS)

    def write(
        self, index: int, rows: int, fill: Callable[[IO[bytes]], None], *, sync: bool = True, **meta: Any
    ) -> None:
        """Commits one shard of any format: ``fill(file)`` writes its bytes; ``meta`` goes into the record.

        Without ``sync`` a loss of power before ``finish`` may take the shard back; a killed process never does.
        """
        # Data are on disk before their record is written. The record's rename makes both names durable; a record
        # without its data, or a torn one, does not count.
        self._manifest = None  # which, if there was one, spoke of other bytes
        with atomic_file(self.path(index), sync_name=False, drafts=self.drafts) as f:
            hashed = _Hashing(f)
            fill(hashed)  # type: ignore[arg-type]
        write_sealed(
            self._record_path(index),
            {
                "kind": self.kind,
                "schema": SCHEMA_VERSION,
                "fingerprint": self.fingerprint,
                "index": index,
                "rows": rows,
                "bytes": hashed.size,
                "sha256": hashed.sha.hexdigest(),
                "footer": self._footer(index) if self.suffix == ".parquet" else None,
                "meta": meta,
            },
            sync=sync,
            drafts=self.drafts,
        )

    def finish(self, shards: int, **extra: Any) -> None:
        """Commits the dataset once all ``shards`` shards are there; ``extra`` must be JSON (no NaN)."""
        records = [self.record(i) for i in range(shards)]
        if None in records:
            raise UserError(f"{self.folder}: shard {records.index(None)} of {shards} is missing; run again")
        stale = self.folder / f"shard-{shards:05d}{self.suffix}"
        stale.unlink(missing_ok=True)
        manifest = {
            "kind": self.kind,
            "schema": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "rows": sum(r["rows"] for r in records if r),
            "shards": records,
            "extra": extra,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.folder)  # what the manifest speaks of is durable before it
        write_sealed(self.folder / MANIFEST, manifest, drafts=self.drafts)
        self._manifest = manifest

    def discard(self, index: int) -> None:
        """Takes back a damaged shard, and with it the manifest, so that the next run makes it again."""
        for path in (self.folder / MANIFEST, self._record_path(index), self.path(index)):
            path.unlink(missing_ok=True)
        self._manifest = None

    # ---- reading

    def read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """One Parquet shard, or some columns of it, verified.

        Of a whole shard the SHA-256 is checked. Of some columns it is the CRC-32 of the footer and of every page
        that is read, so that lengths and scores of millions of samples are read without their texts.

        Raises:
            CorruptShard: bytes differ from what was committed.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from npd_ascend.store.schemas import with_optional

        source = pa.BufferReader(self.read_bytes(index)) if columns is None else self._verified_footer(index)
        try:
            # Not pq.read_table: its dataset layer takes 0.3 s to import, and its threads can abort the interpreter's
            # exit.
            with source, pq.ParquetFile(source, page_checksum_verification=True) as f:
                table = f.read(columns, use_threads=False)
                return table if columns is None else with_optional(self.kind, table, columns)
        except (pa.ArrowException, OSError) as e:
            raise CorruptShard(str(self.folder), index, str(e).splitlines()[0]) from None

    def _verified_footer(self, index: int) -> pa.NativeFile:
        """A Parquet shard, opened, whose footer is the one that was committed."""
        import pyarrow as pa

        record = self.record(index)
        if record is None:
            raise CorruptShard(str(self.folder), index, "its record is missing or its size is wrong")
        try:
            file = pa.OSFile(str(self.path(index)))
            found = footer_crc(file)
        except (OSError, ValueError) as e:
            raise CorruptShard(str(self.folder), index, str(e)) from None
        if found != record.get("footer"):
            raise CorruptShard(str(self.folder), index, "footer checksum differs")
        return file

    def read_bytes(self, index: int) -> bytes:
        """A shard's bytes, verified."""
        record = self.record(index)
        if record is None:
            raise CorruptShard(str(self.folder), index, "its record is missing or its size is wrong")
        try:
            data = self.path(index).read_bytes()
        except OSError as e:
            raise CorruptShard(str(self.folder), index, e.strerror or "cannot be read") from None
        if hashlib.sha256(data).hexdigest() != record.get("sha256"):
            raise CorruptShard(str(self.folder), index, "checksum differs")
        return data

    def iter_tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All shards in order; whole ones are read ahead in threads. Some columns of a shard take a tenth of a
        millisecond, which threads only lengthen by waiting for each other."""
        if columns is not None:
            yield from (self.read(index, columns) for index in range(self.shards))
        else:
            yield from _ahead(self.read, range(self.shards), _READERS)

    def read_all(self, columns: list[str] | None = None) -> pa.Table:
        """All shards as one table."""
        import pyarrow as pa

        from npd_ascend.store.schemas import OPTIONAL, SCHEMAS

        tables = list(self.iter_tables(columns))
        if not tables:
            schema = pa.schema([*SCHEMAS[self.kind], *OPTIONAL.get(self.kind, ())])
            return (pa.schema([schema.field(c) for c in columns]) if columns else SCHEMAS[self.kind]).empty_table()
        tables = [t.unify_dictionaries() for t in tables]
        return pa.concat_tables(tables, promote_options="default").unify_dictionaries()

    def _footer(self, index: int) -> int:
        with open(self.path(index), "rb") as f:
            return footer_crc(f)

    def _record_path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.json"


def _ahead(work: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """``map`` in threads; in order, and with few results at a time that nobody has taken yet."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def footer_crc(f: IO[bytes] | pa.NativeFile) -> int:
    """CRC-32 of a Parquet file's footer: metadata, its length, and the closing magic."""
    size = f.seek(0, os.SEEK_END)
    f.seek(max(0, size - 8))
    length = int.from_bytes(f.read(4), "little")
    if f.read(4) != b"PAR1" or length + 12 > size:
        raise ValueError("not a Parquet file")
    f.seek(size - 8 - length)
    return zlib.crc32(f.read())


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, if it has all that a manifest has."""
    manifest = read_sealed(folder / MANIFEST)
    types = {"kind": str, "fingerprint": str, "rows": int, "shards": list, "extra": dict}
    if manifest is None or not all(isinstance(manifest.get(k), t) for k, t in types.items()):
        return None
    if not all(isinstance(r, dict) and isinstance(r.get("rows"), int) and r["rows"] >= 0 for r in manifest["shards"]):
        return None
    return manifest


class _Hashing(io.RawIOBase):
    """A write-only file that counts and hashes what passes through."""

    def __init__(self, f: IO[bytes]):
        super().__init__()
        self.f, self.sha, self.size = f, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.f.write(view)
        self.sha.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size
