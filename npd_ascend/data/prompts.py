"""Prompt files as a stream of checked rows: JSONL (plain or gzipped) and Parquet.

Memory stays flat whatever the size of a file, and whatever is wrong with a row is said with file and line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npd_ascend.config.schema import DataConfig
from npd_ascend.data import parquet
from npd_ascend.data.bounded import MAX_ROW, too_large
from npd_ascend.errors import UserError

_SUFFIXES = ".jsonl, .jsonl.gz, .json (one object a line) or .parquet"


@dataclass
class PromptRow:
    """One row of a prompt file.

    Attributes:
        where: file and line, for error messages.
        messages: the conversation up to the answer, as role and content.
        text: the user's turn.
        response: reference answer, or None.
        labels: label text, or None.
        answer: what the checker compares with, or None.
    """

    where: str
    messages: list[dict[str, Any]]
    text: str
    response: str | None
    labels: str | None
    answer: str | None


def read_prompts(files: list[Path], settings: DataConfig, need_reference: bool = False,
                 need_answer: bool = False, limit: int | None = None) -> Iterator[PromptRow]:
    """Rows of all files in order, checked.

    Args:
        files: JSONL or Parquet files; a folder stands for the files in it, sorted by name.
        settings: names of the fields, and the system turn.
        need_reference: a row without a reference answer is an error.
        need_answer: a row without an answer to compare with is an error.
        limit: stop after so many rows.

    Raises:
        UserError: a file that is missing, unreadable, empty or malformed; a row that lacks a field or has an
            empty or wrongly typed one.
    """
    count, fields = 0, _fields(settings)
    for path in expand(files):
        rows = 0
        for where, record in _records(path, fields):
            if limit is not None and count >= limit:
                return
            yield _check(where, record, settings, need_reference, need_answer)
            rows += 1
            count += 1
        if not rows and (limit is None or count < limit):
            raise UserError(f"{path}: there are no rows in it")


def measure(files: list[Path]) -> tuple[int, int]:
    """(rows, bytes) of prompt files, without a look at what the rows say; blank lines count.

    Raises:
        UserError: as ``read_prompts``, of files.
    """
    count = size = 0
    for path in expand(files):
        if _kind(path) == "parquet":
            more, text = parquet.measure(path)
            count, size = count + more, size + text
            continue
        for _, raw in _lines(path):
            count, size = count + 1, size + len(raw)
    return count, size


def _fields(settings: DataConfig) -> list[str]:
    """Names of the fields that are used."""
    named = (settings.prompt_field, settings.response_field, settings.labels_field, settings.answer_field)
    return list(dict.fromkeys(name for name in named if name is not None))


def expand(files: list[Path]) -> list[Path]:
    """The files that are read, folders resolved to what is in them."""
    found: list[Path] = []
    for path in map(Path, files):
        try:
            found += _expand(path)
        except OSError as e:  # a folder that may not be listed, a name too long
            raise UserError(f"prompt file {path}: cannot be read ({e.strerror})") from None
    if not found:
        raise UserError("no prompt files are given; list at least one")
    return found


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and _kind(p))
        if not inside:
            raise UserError(f"{path}: no prompt files in this folder; expected {_SUFFIXES}")
        return inside
    if not path.exists():
        raise UserError(f"prompt file {path}: no such file")
    if not _kind(path):
        raise UserError(f"prompt file {path}: unknown kind of file; expected {_SUFFIXES}")
    return [path]


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        return "json"
    return None


def _records(path: Path, fields: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    return _parquet(path, fields) if _kind(path) == "parquet" else _jsonl(path)


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, raw in _lines(path):
        where = f"{path}, line {number}"
        record = _parse(where, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
        if record is not None:
            yield where, record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, plain or gzipped."""
    number = 0
    try:
        with (gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")) as f:
            while raw := f.readline(MAX_ROW + 1):
                number += 1
                if len(raw) > MAX_ROW:
                    raise UserError(f"{path}, line {number}: {too_large('line')}")
                yield number, raw
    except (OSError, EOFError, zlib.error) as e:
        after = f" after line {number}" if number else ""
        raise UserError(f"prompt file {path}: cannot be read{after} "
                        f"({getattr(e, 'strerror', None) or e})") from None


def _parse(where: str, raw: bytes) -> dict[str, Any] | None:
    try:
        line = raw.decode("utf-8").strip()
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 (byte {e.object[e.start]:#04x} at column {e.start + 1}); convert the "
                        "file to UTF-8") from None
    if not line:
        return None
    try:
        record = json.loads(line)
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not valid JSON ({e.msg} at column {e.colno}); each line must hold one whole "
                        "object") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not usable JSON ({str(e).split(';')[0]})") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: holds {_type(record)}, expected an object such as {{\"prompt\": \"...\"}}")
    return record


def _parquet(path: Path, fields: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = parquet.rows(path, fields)
    names = json.loads(next(lines, b"[]"))
    # Columns that were not read: messages about a missing field name them.
    unread = {name: ... for name in names if name not in fields}
    for number, line in enumerate(lines, 1):
        yield f"{path}, row {number}", json.loads(line) | unread


def _check(where: str, record: dict[str, Any], settings: DataConfig, need_reference: bool,
           need_answer: bool) -> PromptRow:
    messages, text = _messages(where, _field(where, record, settings.prompt_field, "prompt_field"), settings)
    response = labels = answer = None
    if settings.response_field is not None:
        response = _text(where, record, settings.response_field, "response_field", need_reference)
        if response is not None and not response.strip():
            if need_reference:
                raise UserError(f"{where}: {settings.response_field!r} is empty; give an answer or leave the row out")
            response = None
    elif need_reference:
        raise UserError("reference answers are needed but data.response_field is not set")
    if settings.labels_field is not None and response is not None:
        labels = _text(where, record, settings.labels_field, "labels_field", required=False)
    if settings.answer_field is not None:
        answer = _text(where, record, settings.answer_field, "answer_field", need_answer, numbers=True)
    elif need_answer:
        raise UserError("answers are needed to check against but data.answer_field is not set")
    return PromptRow(where, messages, text, response, labels, answer)


def _field(where: str, record: dict[str, Any], name: str, setting: str) -> Any:
    if record.get(name) is None:
        there = ", ".join(repr(k) for k, v in record.items() if v is not None) or "none"
        raise UserError(f"{where}: no field {name!r}; the fields there are: {there[:200]} (set data.{setting})")
    return record[name]


def _text(where: str, record: dict[str, Any], name: str, setting: str, required: bool,
          numbers: bool = False) -> str | None:
    if record.get(name) is None and not required:
        return None
    value = _field(where, record, name, setting)
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _string(where, f"field {name!r}", value)


def _messages(where: str, value: Any, settings: DataConfig) -> tuple[list[dict[str, Any]], str]:
    plain = isinstance(value, str)
    if plain:
        value = [{"role": "user", "content": value}]
    elif settings.template == "raw":
        raise UserError(f"{where}: field {settings.prompt_field!r} is {_type(value)}, but data.template is raw, "
                        "which takes text only; set data.template: chat")
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: field {settings.prompt_field!r} is {_type(value)}, expected text or a list of chat "
                        "messages")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(f"{where}: message {number} has no role and content")
        what = f"field {settings.prompt_field!r}" if plain else f"content of message {number}"
        content = _string(where, what, message["content"])
        messages.append({"role": message["role"], "content": content})
    last = messages[-1]
    if last["role"] == "assistant":
        raise UserError(f"{where}: the conversation ends with the assistant's turn; end it with the user's and put the "
                        "answer into its own field (data.response_field)")
    if not last["content"].strip():
        raise UserError(f"{where}: the prompt is empty")
    if settings.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": settings.system})
    asked = next((m for m in reversed(messages) if m["role"] == "user"), last)
    text = asked["content"]
    asked["content"] += settings.suffix or ""
    return messages, text


def _string(where: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} is {_type(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {what} has half of a surrogate pair, which is no character") from None
    return value


def _type(value: Any) -> str:
    names = {list: "a list" if value else "an empty list", dict: "an object", str: "text", bool: "true or false",
             int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
