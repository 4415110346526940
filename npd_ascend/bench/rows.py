"""Rows of benchmark files, in whatever of their published forms they come; no library is asked, nothing is cached."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.store.identity import file_sha256


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: file and line, for messages.
        fields: by name.
    """

    where: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field that must be text.

        Raises:
            UserError: it is missing, or something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            known = ", ".join(self.fields) or "none"
            raise UserError(f"{self.where}: no text in field {name!r}; this row has {known}")
        return value

    def letter(self, name: str, letters: str) -> int:
        """Number of the letter in a field.

        Raises:
            UserError: it is none of these.
        """
        value = self.text(name).strip()
        if len(value) != 1 or value not in letters:
            raise UserError(f"{self.where}: {name} is {value[:20]!r}, expected one of {', '.join(letters)}")
        return letters.index(value)


def spread(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """As many rows as ``limit`` says, evenly spread, so that all subjects of an examination have their part; always
    the same ones."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def one_line_each(path: Path) -> Iterator[Row]:
    """Objects of a file of JSON lines, gzipped or not.

    Raises:
        UserError: it cannot be read, or a line is no object.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{path}:{number}: no JSON object; expected one on each line")
        yield Row(f"{path}:{number}", value)


def whole_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON") from None


def comma_separated(path: Path, names: Sequence[str] = ()) -> list[Row]:
    """Rows of a CSV file.

    Args:
        path: the file.
        names: of the columns, where the file has no heading.

    Raises:
        UserError: it cannot be read, has no rows, or one with more or fewer columns than the heading.
    """
    lines = list(csv.reader(io.StringIO(_text(path), newline="")))
    head, body = (list(names), lines) if names else (lines[0] if lines else [], lines[1:])
    if not body:
        raise UserError(f"{path}: it has no rows")
    first = 1 if names else 2
    for number, cells in enumerate(body, first):
        if len(cells) != len(head):
            raise UserError(f"{path}: row {number} has {len(cells)} columns, expected {len(head)} ({', '.join(head)})")
    return [
        Row(f"{path}: row {number}", dict(zip(head, cells, strict=True))) for number, cells in enumerate(body, first)
    ]


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder by name.

    Raises:
        UserError: there are none.
    """
    found = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder}: there are no {suffix} files in it")
    return found


def digest_of(path: Path, pattern: str) -> str:
    """SHA-256 of a file, or of the lines ``hash  path`` of the files of a folder, as sha256sum prints them.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        if path.is_file():
            return file_sha256(path)
        files = sorted(p for p in path.glob(pattern) if p.is_file())
        text = "".join(f"{file_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in files)
    except OSError as e:
        raise UserError(f"{e.filename or path}: cannot be read ({e.strerror})") from None
    return hashlib.sha256(text.encode()).hexdigest()


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError) as e:
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: no UTF-8 text") from None
