"""Rows of a Parquet file as JSON lines, in bounded memory: ``python -m npd_ascend.data.parquet FILE FIELD...``.

Dictionaries and run lengths let a file of a few kilobytes decode to any size, and what its metadata say of that size
may be false. So the file is read by this process, which has ``MEMORY`` bytes to do it in, reads the named columns only
and ends at the first row that is too large. Exit code 2: stderr ends with ``{"row": number or null, "text": ...}``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npd_ascend.data.bounded import MAX_ROW, limit_memory, start, too_large
from npd_ascend.errors import UserError

MEMORY = 1 << 30
"""Address space beyond what the libraries take."""
_BATCH = 64  # rows of the largest size allowed fit into memory together


def rows(path: Path, fields: list[str]) -> Iterator[bytes]:
    """The named columns of each row as a line of JSON, null where a file has no such column; first a line that lists
    the names of all columns.

    Raises:
        UserError: it is no Parquet file, a row is too large, or reading it takes more than ``MEMORY``.
    """
    with tempfile.TemporaryFile() as said:
        child = start("npd_ascend.data.parquet", str(path), *fields, errors=said)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()
        ended = False
        try:
            yield from child.stdout
            ended = True
        finally:
            if not ended:
                child.kill()
            child.stdout.close()
            code = child.wait()
        if code:
            said.seek(0)
            raise UserError(_why(path, code, said.read()))


def measure(path: Path) -> tuple[int, int]:
    """(rows, bytes) by the file's own account; the bytes are those on disk.

    Raises:
        UserError: it is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows, path.stat().st_size
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"prompt file {path}: not a readable Parquet file ({_first_line(e)})") from None


def _first_line(e: Exception) -> str:
    return (str(e) or type(e).__name__).splitlines()[0]


def _why(path: Path, code: int, said: bytes) -> str:
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        told = json.loads(last)
        place = f"{path}, row {told['row']}" if told["row"] else f"prompt file {path}"
        return f"{place}: {told['text']}"
    except (ValueError, KeyError, TypeError):
        return (f"prompt file {path}: not a readable Parquet file (its reader ended with "
                f"{'signal' if code < 0 else 'exit code'} {abs(code)})")


class _Refused(Exception):
    def __init__(self, row: int | None, text: str):
        super().__init__(text)
        self.row = row


def _write(path: str, fields: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # others reserve address space ahead
    limit_memory(MEMORY)
    done, out = 0, sys.stdout.buffer
    try:
        # A column is streamed through a buffer: row groups may be of any size.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            out.write(json.dumps(names).encode() + b"\n")
            columns = [n for n in dict.fromkeys(fields) if n in names]
            for name in columns:
                if not _plain(kind := file.schema_arrow.field(name).type):
                    raise _Refused(1, f"field {name!r} is of the Parquet type {str(kind)[:80]}, expected text")
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False):
                for i in range(batch.num_rows):
                    record = batch.slice(i, 1).to_pylist()[0]
                    line = json.dumps({n: record[n] for n in columns}, ensure_ascii=False).encode() + b"\n"
                    if len(line) > MAX_ROW:
                        raise _Refused(done + 1, too_large("row"))
                    out.write(line)
                    done += 1
        out.flush()
    except MemoryError:  # Arrow's is a kind of it
        raise _Refused(None, f"rows {done + 1} to {done // _BATCH * _BATCH + _BATCH} take more than {MEMORY >> 30} GB "
                             f"to decode; write the file with rows of at most {MAX_ROW >> 20} MB") from None
    except (pa.ArrowException, OSError, UnicodeError) as e:
        if isinstance(e, BrokenPipeError):
            raise
        raise _Refused(None, f"not a readable Parquet file ({_first_line(e)})") from None


def _plain(kind: Any) -> bool:
    """Whether a type is text or numbers, or made of them: what JSON has."""
    import pyarrow.types as t

    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind):
        return _plain(kind.value_type)
    if t.is_struct(kind):
        return all(_plain(field.type) for field in kind)
    return (t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind) or t.is_integer(kind)
            or t.is_floating(kind) or t.is_boolean(kind) or t.is_null(kind))


def main() -> None:
    """See the module."""
    try:
        _write(sys.argv[1], sys.argv[2:])
    except _Refused as e:
        print(json.dumps({"row": e.row, "text": str(e)}), file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:  # who asked has enough
        sys.exit(1)


if __name__ == "__main__":
    main()
