"""Rows of text files, one after the other and in bounded memory: JSON lines, JSON arrays, CSV and TSV, plain or
compressed."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from npd_ascend.data.bounded import MAX_ROW, too_large
from npd_ascend.errors import UserError

_CHUNK = 1 << 16
_blanks = re.compile(r"[ \t\r\n]*").match
_BOM = b"\xef\xbb\xbf"
Rows = Iterator[tuple[str, dict[str, Any]]]


def json_rows(path: Path) -> Rows:
    """(place, object) of each row: of each line, or of each element where the file is one array."""
    with _opened(path) as f:
        if f.peek(_CHUNK).removeprefix(_BOM).lstrip()[:1] == b"[":  # type: ignore[attr-defined]
            yield from _Array(path, f.read).rows()
        else:
            yield from _lines_of_json(path, f)


def csv_rows(path: Path) -> Rows:
    """(place, row) of a table whose first line names the columns."""
    with _opened(path) as f:
        yield from _table(path, f)


def count(path: Path, kind: str) -> tuple[int, int]:
    """(rows, bytes) without a look at what the rows say; of JSON lines, blank ones count."""
    rows = size = 0
    with _opened(path) as f:
        if kind == "json" and f.peek(_CHUNK).removeprefix(_BOM).lstrip()[:1] != b"[":  # type: ignore[attr-defined]
            for _, raw in _lines(path, f):
                rows, size = rows + 1, size + len(raw)
            return rows, size
    for _, row in csv_rows(path) if kind == "csv" else json_rows(path):
        rows, size = rows + 1, size + len(str(row))
    return rows, size


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked."""
    name = path.name.lower()
    try:
        if name.endswith(".gz"):
            with gzip.open(path, "rb") as f:
                yield f  # type: ignore[misc]
        elif name.endswith(".zst"):
            with _zstandard(path) as f:
                yield f
        else:
            with open(path, "rb") as f:
                yield f
    except (OSError, EOFError, zlib.error) as e:
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise UserError(f"prompt file {path}: cannot be read ({reason})") from None


@contextmanager
def _zstandard(path: Path) -> Iterator[IO[bytes]]:
    import pyarrow as pa  # a tenth of what a dry run takes, which mostly finds plain files

    try:
        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as unpacked:
            yield io.BufferedReader(unpacked, _CHUNK)
    except pa.ArrowException as e:
        raise OSError(str(e)) from None


def _lines(path: Path, f: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := f.readline(MAX_ROW + 1):
        number += 1
        if len(raw) > MAX_ROW:
            raise UserError(f"{path}, line {number}: {too_large('line')}")
        yield number, raw.removeprefix(_BOM) if number == 1 else raw


def _decoded(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(
            f"{where}: not UTF-8 (byte {e.object[e.start]:#04x} at column {e.start + 1}); convert the file to UTF-8"
        ) from None


# ---- JSON


def _lines_of_json(path: Path, f: IO[bytes]) -> Rows:
    for number, raw in _lines(path, f):
        where = f"{path}, line {number}"
        line = _decoded(where, raw).strip()
        if not line:
            continue
        try:
            yield where, _object(where, json.loads(line))
        except json.JSONDecodeError as e:
            raise UserError(
                f"{where}: not valid JSON ({e.msg} at column {e.colno}); each line must hold one whole "
                "object, or the file one array of objects"
            ) from None
        except (ValueError, RecursionError) as e:
            raise UserError(_unusable(where, e)) from None


def _unusable(where: str, e: Exception) -> str:
    return f"{where}: not usable JSON ({str(e).split(';')[0]})"


def _object(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f'{where}: holds {type_name(record)}, expected an object such as {{"prompt": "..."}}')
    return record


def type_name(value: Any) -> str:
    """What a value of JSON is, for messages."""
    names = {
        list: "a list" if value else "an empty list",
        dict: "an object",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


class _Array:
    """Elements of one JSON array, of which little more than one is in memory."""

    def __init__(self, path: Path, read: Callable[[int], bytes]):
        self.path, self._read = path, read
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self._number = 0

    def rows(self) -> Rows:
        """Each element with its place."""
        self._next()
        self._at += 1  # the bracket
        mark = "," if self._next() != "]" else "]"
        while mark == ",":
            self._number += 1
            where = f"{self.path}, row {self._number}"
            self._next()
            yield where, _object(where, self._element(where))
            mark = self._next()
            if mark not in (",", "]"):
                raise UserError(
                    f"{where}: {self._cut_off()}"
                    if not mark
                    else f"{where}: not valid JSON ({mark!r} after it in line {self._line}); separate the "
                    "objects by commas"
                )
            self._at += 1
        self._at += not self._number  # the bracket of an empty one
        if self._next():
            raise UserError(
                f"{self.path}, line {self._line}: there is more behind the end of the array; a file holds "
                "one array, or one object a line"
            )

    def _next(self) -> str:
        """The next character that is no blank, which stays; empty at the end."""
        while True:
            end = _blanks(self._text, self._at).end()  # type: ignore[union-attr]
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            if end < len(self._text) or not self._more():
                return self._text[end : end + 1]

    def _element(self, where: str) -> Any:
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as e:
                inside, place = e.msg.startswith("Unterminated"), e.pos - self._at
                if self._grow(where, broken=e.pos + 16 < len(self._text) and not inside):
                    continue
                place += self._at  # what lay before the element may have been dropped
                if inside or not self._text[place:].strip():
                    raise UserError(f"{where}: {self._cut_off()}") from None
                line = self._line + self._text.count("\n", self._at, place)
                raise UserError(f"{where}: not valid JSON ({e.msg} in line {line})") from None
            except (ValueError, RecursionError) as e:
                raise UserError(_unusable(where, e)) from None
            if end == len(self._text) and self._grow(where):  # a number may go on
                continue
            if end - self._at > MAX_ROW:
                raise UserError(f"{where}: {too_large('row')}")
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def _cut_off(self) -> str:
        return "not valid JSON (the file ends before the array does); write the file again"

    def _grow(self, where: str, broken: bool = False) -> bool:
        """Reads more of an element that is not whole; False: no more can mend it."""
        if broken:
            return False
        if len(self._text) - self._at > MAX_ROW:
            raise UserError(f"{where}: {too_large('row')}")
        return self._more(len(self._text) - self._at)

    def _more(self, size: int = 0) -> bool:
        """Appends what follows, at least as much as is there so that parsing again stays cheap; False at the end."""
        if self._ended:
            return False
        raw = self._read(max(_CHUNK, size))
        self._ended = not raw
        try:
            more = self._decode.decode(raw, final=self._ended)
        except UnicodeDecodeError as e:
            raise UserError(
                f"{self.path}, row {max(1, self._number)}: not UTF-8 (byte {e.object[e.start]:#04x} there "
                "or in a later row); convert the file to UTF-8"
            ) from None
        self._text, self._at = self._text[self._at :] + more, 0
        return not self._ended


# ---- CSV


def _table(path: Path, f: IO[bytes]) -> Rows:
    csv.field_size_limit(MAX_ROW)
    at = {"line": 0, "begin": 0, "size": 0}

    def lines() -> Iterator[str]:
        for number, raw in _lines(path, f):
            at["line"], at["size"] = number, at["size"] + len(raw)
            if at["size"] > MAX_ROW:  # a quote that is never closed, say
                raise UserError(f"{path}, line {at['begin'] + 1}: {too_large('row')}, or close its quotes")
            yield _decoded(f"{path}, line {number}", raw)

    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    reader = csv.reader(lines(), "excel-tab" if name.endswith(".tsv") else "excel", strict=True)
    names: list[str] = []
    while True:
        at["begin"], at["size"] = at["line"], 0
        where = f"{path}, line {at['begin'] + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as e:
            raise UserError(
                f"{where}: not a readable row ({e}); quote cells that hold separators, quotes or line feeds"
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        if not names:
            names = [c.strip() for c in cells]
        elif len(cells) != len(names):
            raise UserError(
                f"{where}: {len(cells)} cells, but line 1 names {len(names)} columns; quote cells that hold separators"
            )
        else:
            yield where, dict(zip(names, cells, strict=True))
