"""Append-only record of finished samples; a kill costs at most the record being written.

Frame: length (u32 LE), CRC-32 of the payload (u32 LE), payload (UTF-8 JSON). A torn or damaged tail is cut off when
the journal is opened: everything before it was finished and stays.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from npd_ascend.store.atomic import sync_folder

_HEAD = struct.Struct("<II")


class Journal:
    """One writer's journal.

    Args:
        path: the file; made when missing. Opening it replays what is there and cuts a torn tail.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.path.read_bytes() if self.path.exists() else b""
        self._records, good = _parse(data)
        self._file = open(self.path, "ab", buffering=0)
        if good != len(data):
            os.truncate(self.path, good)
        sync_folder(self.path.parent)

    def replay(self) -> list[dict[str, Any]]:
        """Records that were in the file when it was opened, in order."""
        return self._records

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record; it survives a kill of the process as soon as this returns."""
        self.append_many([record])

    def append_many(self, records: list[dict[str, Any]]) -> None:
        """Writes several records with one system call; when the disk is full, none of them.

        Raises:
            OSError: they could not be written; what was in the journal is still there and more may be appended.
        """
        frames = bytearray()
        for record in records:
            payload = json.dumps(record, separators=(",", ":")).encode()
            frames += _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        view, end = memoryview(frames), os.fstat(self._file.fileno()).st_size
        try:
            while view:  # a raw write may be short when the disk fills up
                view = view[self._file.write(view) :]
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise

    def sync(self) -> None:
        """Makes all appended records survive a power cut as well."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Closes and deletes the journal: its records now stand in a committed shard."""
        self.close()
        self.path.unlink(missing_ok=True)


def _parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Whole records from the start of ``data`` and the number of bytes that they take."""
    records, at = [], 0
    while at + _HEAD.size <= len(data):
        size, crc = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + size]
        if len(payload) < size or zlib.crc32(payload) != crc:
            break
        try:
            record = json.loads(payload)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
        at += _HEAD.size + size
    return records, at
