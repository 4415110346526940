"""Files and folders that are either whole or absent, whatever kills the writer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_TMP = ".tmp-"
_SEAL = "seal"


@contextmanager
def atomic_file(
    path: Path, *, sync_data: bool = True, sync_name: bool = True, drafts: Path | None = None
) -> Iterator[IO[bytes]]:
    """Opens a binary file in ``drafts``, or beside ``path``, and puts it in place once it is written and on disk.

    On an exception the partial file is removed and ``path`` is what it was. Without ``sync_name`` its name is durable
    only after the next ``sync_folder``, without ``sync_data`` its content only when the system gets round to it (a
    killed process loses neither).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = (drafts or path.parent) / f"{_TMP}{os.getpid()}-{path.name}"
    try:
        with open(tmp, "wb") as f:
            yield f
            f.flush()
            if sync_data:
                os.fsync(f.fileno())
        os.replace(tmp, path)
        if sync_name:
            sync_folder(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, *, sync: bool = True, drafts: Path | None = None) -> None:
    """Atomic ``Path.write_bytes``; without ``sync``, durable only when the system gets round to it."""
    with atomic_file(path, sync_data=sync, sync_name=sync, drafts=drafts) as f:
        f.write(data)


def write_json(path: Path, value: Any, *, sync: bool = True, drafts: Path | None = None) -> None:
    """Atomic, indented, with a newline at the end; NaN is refused rather than written as invalid JSON."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(), sync=sync, drafts=drafts)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing, half written or holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_sealed(path: Path, value: dict[str, Any], *, sync: bool = True, drafts: Path | None = None) -> None:
    """``write_json`` with a hash of the content inside, for files whose every figure is relied upon."""
    value = json.loads(json.dumps(value, allow_nan=False))  # as it will be read: keys are text
    write_json(path, {**value, _SEAL: _seal(value)}, sync=sync, drafts=drafts)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What ``write_sealed`` wrote, without the seal; None when it is absent or damaged."""
    value = read_object(path)
    return value if value.pop(_SEAL, None) == _seal(value) else None


def _seal(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path``; on success its files are synced and it takes the place of ``path``.

    A folder that already exists at ``path`` is replaced (it is moved aside first, so that a kill in between
    leaves either the old or the new one, or, for an instant, neither, never a mixture).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{_TMP}{os.getpid()}-{path.name}")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        yield tmp
        for file in tmp.rglob("*"):
            if file.is_file():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
        sync_folder(tmp)
        if path.exists():
            old = path.with_name(f"{_TMP}old-{os.getpid()}-{path.name}")
            os.replace(path, old)
            os.replace(tmp, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(tmp, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def sweep(folder: Path) -> None:
    """Removes what killed writers left below ``folder``. Call it only where no writer is at work."""
    for left in folder.rglob(f"{_TMP}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
