"""Rows of a Parquet or Arrow file as JSON lines, in bounded memory: ``python -m npd_ascend.data.tables FILE``.

Dictionaries, run lengths and compressed buffers let a file of a few kilobytes decode to any size, and what its metadata
say of that size may be false. So the file is read by this process, which has ``MEMORY`` bytes to do it in. It names the
columns, gets those that are wanted, reads these only and ends at the first row that is too large. Exit code 2:
stderr ends with ``{"row": number or null, "text": ...}``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from npd_ascend.data.bounded import MAX_ROW, limit_memory, start, too_large
from npd_ascend.errors import NpdError, UserError

MEMORY = 1 << 30
"""Address space beyond what the libraries take."""
_BATCH = 64  # rows of the largest size allowed fit into memory together


def rows(path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[dict[str, Any]]:
    """The wanted columns of each row; those that are not wanted are ``...``, so that messages can name them.

    Args:
        path: Parquet or Arrow file (IPC stream, as ``datasets`` writes it, or IPC file).
        choose: all columns -> the wanted ones.

    Raises:
        UserError: it is no such file, a row is too large, or reading it takes more than ``MEMORY``.
    """
    with tempfile.TemporaryFile() as said:
        child = start("npd_ascend.data.tables", str(path), errors=said)
        assert child.stdin is not None and child.stdout is not None
        ended = False
        try:
            names = json.loads(child.stdout.readline() or b"[]")
            wanted = [name for name in dict.fromkeys(choose(names)) if name in names]
            unread = {name: ... for name in names if name not in wanted}
            _tell(child.stdin, wanted)
            for line in child.stdout:
                yield json.loads(line) | unread
            ended = True
        finally:
            if not ended:
                child.kill()
            child.stdout.close()
            code = child.wait()
        if code:
            said.seek(0)
            raise UserError(_why(path, code, said.read()))


def _tell(pipe: IO[bytes], wanted: list[str]) -> None:
    try:
        with pipe:
            pipe.write(json.dumps(wanted).encode() + b"\n")
    except BrokenPipeError:  # it has ended already, and its exit code says why
        pass


def measure(path: Path) -> tuple[int, int]:
    """(rows, bytes); Parquet's rows by the file's own account. The bytes are those on disk.

    Raises:
        UserError: it is no Parquet or Arrow file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".arrow":
        return sum(1 for _ in rows(path, lambda names: [])), path.stat().st_size
    try:
        return pq.read_metadata(path).num_rows, path.stat().st_size
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"prompt file {path}: not a readable Parquet file ({_first_line(e)})") from None


def _first_line(e: Exception) -> str:
    return (str(e) or type(e).__name__).splitlines()[0]


def _why(path: Path, code: int, said: bytes) -> str:
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        event = json.loads(last)
        place = f"{path}, row {event['row']}" if event["row"] else f"prompt file {path}"
        return f"{place}: {event['text']}"
    except (ValueError, KeyError, TypeError):
        return (
            f"prompt file {path}: not a readable {_format(str(path))} file (its reader ended with "
            f"{'signal' if code < 0 else 'exit code'} {abs(code)})"
        )


def _format(path: str) -> str:
    return "Arrow" if path.lower().endswith(".arrow") else "Parquet"


class _Refused(NpdError):
    def __init__(self, row: int | None, text: str):
        super().__init__(text)
        self.row = row


def _write(path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet  # noqa: F401  # before memory is limited

    pa.set_memory_pool(pa.system_memory_pool())  # others reserve address space ahead
    limit_memory(MEMORY)
    done, out = 0, sys.stdout.buffer
    try:
        with _Arrow(path) if _format(path) == "Arrow" else _Parquet(path) as file:
            out.write(json.dumps(file.schema.names).encode() + b"\n")
            out.flush()
            columns = json.loads(sys.stdin.readline() or "[]")
            for name in columns:
                if not _plain(kind := file.schema.field(name).type):
                    raise _Refused(1, f"field {name!r} is of the {_format(path)} type {str(kind)[:80]}, expected text")
            for batch in file.batches(columns):
                for i in range(batch.num_rows):
                    record = batch.slice(i, 1).to_pylist()[0] if columns else {}
                    line = json.dumps({n: record[n] for n in columns}, ensure_ascii=False).encode() + b"\n"
                    if len(line) > MAX_ROW:
                        raise _Refused(done + 1, too_large("row"))
                    out.write(line)
                    done += 1
        out.flush()
    except MemoryError:  # Arrow's is a kind of it
        last = "the end of a batch" if _format(path) == "Arrow" else done // _BATCH * _BATCH + _BATCH
        raise _Refused(
            None,
            f"rows {done + 1} to {last} take more than {MEMORY >> 30} GB to decode; write the file "
            f"with rows of at most {MAX_ROW >> 20} MB",
        ) from None
    except (pa.ArrowException, OSError, UnicodeError) as e:
        if isinstance(e, BrokenPipeError):
            raise
        raise _Refused(None, f"not a readable {_format(path)} file ({_first_line(e)})") from None


class _Parquet:
    """Batches of a Parquet file; a column is streamed through a buffer, since row groups may be of any size."""

    def __init__(self, path: str):
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        self.schema = self._file.schema_arrow

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """The wanted columns, ``_BATCH`` rows at a time."""
        yield from self._file.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False)


class _Arrow:
    """Batches of an IPC stream or file, which are read whole: not mapped, since mapped pages count as memory."""

    def __init__(self, path: str):
        import pyarrow as pa

        self._source = pa.OSFile(path)
        self._is_file = self._source.read(6) == b"ARROW1"
        self.schema = self._open(None).schema

    def __enter__(self) -> _Arrow:
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    def _open(self, fields: list[int] | None) -> Any:
        import pyarrow as pa

        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        self._source.seek(0)
        opened = pa.ipc.open_file if self._is_file else pa.ipc.open_stream
        return opened(self._source, options=options)

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """The wanted columns, checked: their offsets may be anything."""
        reader = self._open(sorted(map(self.schema.get_field_index, columns)))
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if self._is_file else reader:
            batch.validate(full=True)
            yield batch


def _plain(kind: Any) -> bool:
    """Whether a type is text or numbers, or made of them: what JSON has."""
    import pyarrow.types as t

    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind):
        return _plain(kind.value_type)
    if t.is_struct(kind):
        return all(_plain(field.type) for field in kind)
    return bool(
        t.is_string(kind)
        or t.is_large_string(kind)
        or t.is_string_view(kind)
        or t.is_integer(kind)
        or t.is_floating(kind)
        or t.is_boolean(kind)
        or t.is_null(kind)
    )


def main() -> None:
    """See the module."""
    try:
        _write(sys.argv[1])
    except _Refused as e:
        print(json.dumps({"row": e.row, "text": str(e)}), file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:  # who asked has enough
        sys.exit(1)


if __name__ == "__main__":
    main()
