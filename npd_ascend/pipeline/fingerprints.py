"""The fingerprint of a job: the hash of all its fields, as the marks of its fields say (``config/marks.py``)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from npd_ascend.config.job import Job
from npd_ascend.config.marks import (
    CHECKPOINT,
    FILE,
    OUTPUT,
    SPEECH,
    SPEED,
    TEMPLATE,
    TOKENIZER,
    Holds,
    Mark,
    Only,
    Younger,
)
from npd_ascend.config.schema import Section
from npd_ascend.data.tokenizer import COMPANIONS, TOKENIZER_FILES, declared_stop_ids, has_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import digest, file_sha256, fingerprint, model_fingerprint


class Fingerprints:
    """Fingerprints of jobs.

    Args:
        cache: file that remembers content hashes of model files; None: none does.
    """

    def __init__(self, cache: Path | None = None):
        self._seen: dict[tuple[Mark, Path], Any] = {}
        self._contents: dict[Mark, Callable[[Path], Any]] = {
            CHECKPOINT: lambda folder: model_fingerprint(folder, cache),
            TOKENIZER: _tokenizer,
            SPEECH: _speech,
            TEMPLATE: _template,
            FILE: _file,
        }

    def of(self, job: Job, *made: str) -> list[str]:
        """Fingerprint of each thing that ``job`` makes.

        Args:
            job: the job; its ``fingerprint`` does not matter.
            made: names of its outputs.

        Raises:
            UserError: an input is not there.
        """
        self._seen = {}
        return [fingerprint(name, self._fields(job, name, job.unread)) for name in made]

    def _fields(self, section: Section, made: str, unread: Collection[str] = ()) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, field in type(section).model_fields.items():
            marks = field.metadata
            if name in unread or SPEED in marks or OUTPUT in marks:
                continue
            if Younger() in marks and getattr(section, name) == field.default:
                continue
            if any(isinstance(m, Only) and made not in m.names for m in marks):
                continue
            value = self._value(getattr(section, name), self._reader(marks), made)
            if value is not _NOWHERE:
                out[name] = value
        return out

    def _reader(self, marks: list[Any]) -> Callable[[Path], Any] | None:
        """What tells the content at a path with these marks; None: its content does not count."""
        for mark in marks:
            if isinstance(mark, Holds):
                return lambda folder: Dataset.open(folder, mark.kind).fingerprint
            if mark in self._contents:
                return lambda path: self._content(mark, path)
        return None

    def _content(self, mark: Mark, path: Path) -> Any:
        """Read once a job: a checkpoint is large."""
        if (mark, path) not in self._seen:
            self._seen[mark, path] = self._contents[mark](path)
        return self._seen[mark, path]

    def _value(self, value: Any, content: Callable[[Path], Any] | None, made: str) -> Any:
        if isinstance(value, Section):
            return self._fields(value, made)
        if content and isinstance(value, str | Path):
            return content(Path(value))
        if isinstance(value, Path):
            return _NOWHERE
        if isinstance(value, list):
            return [v for item in value if (v := self._value(item, content, made)) is not _NOWHERE]
        if isinstance(value, dict):
            return {k: self._value(v, content, made) for k, v in value.items()}
        return value


_NOWHERE = object()


def combined(fingerprints: Collection[str]) -> str:
    """One for several."""
    return digest(sorted(fingerprints))


def _file(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None


def _tokenizer(folder: Path) -> list[Any]:
    found = {n: _file(folder / n) for n in (*TOKENIZER_FILES, *COMPANIONS) if (folder / n).is_file()}
    if not found:
        raise UserError(f"{folder}: no tokenizer there (tokenizer.json or tokenizer.model); set models.tokenizer")
    return [found, declared_stop_ids(folder)]


def _speech(folder: Path) -> list[Any]:
    return _tokenizer(folder) if has_tokenizer(folder) else [None, declared_stop_ids(folder)]


def _template(path: Path) -> Any:
    if str(path) in ("auto", "student", "teacher"):  # their tokenizers count by themselves
        return str(path)
    return _tokenizer(path) if path.is_dir() else _file(path)
