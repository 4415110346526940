"""Shards of a job that several workers share, on any shared file system and without locks.

The owner of the workers lays out a ticket for each missing shard and a folder for each worker. A worker takes a shard
by moving its ticket into its own folder, and what it makes is written there and then moved to its place: each of these
renames succeeds once. When the owner gives a worker up it removes that folder first. Whatever the worker still does,
because it was only stopped or cut off, it can neither take a shard nor change a file any more.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from npd_ascend.errors import UserError

_ROOT, _FREE = ".tmp-shards", "free"
_TRIES, _AGAIN_S = 100, 0.02


class Tickets:
    """The owner's side: which shards are free, and which worker has the others. What an owner that was killed has left
    is removed.

    Args:
        folder: of the dataset.
        missing: numbers of the shards that are not made.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, missing: Callable[[], set[int]]):
        self._root, self._missing = folder / _ROOT, missing
        self._workers: dict[int, Path] = {}
        try:
            _remove(self._root)
            (self._root / _FREE).mkdir(parents=True)
            self._lay(missing())
        except OSError as e:
            raise UserError(f"{folder}: cannot be written ({e.strerror}); use another run.dir") from None

    def admit(self, worker: int) -> Path:
        """Makes the folder of a worker, in the place of one that it had before."""
        self.expel(worker)
        own = self._root / uuid.uuid4().hex
        own.mkdir()
        self._workers[worker] = own
        return own

    def expel(self, worker: int) -> None:
        """Removes the folder of a worker; what it held and had not finished is free again."""
        own = self._workers.pop(worker, None)
        if own is not None:
            _remove(own)
            free = self.free  # before the folders, to which one may be moved in between
            self._lay(self._missing() - free.union(*map(_numbers, self._workers.values())))

    @property
    def free(self) -> set[int]:
        """Numbers of the shards that no worker has."""
        return _numbers(self._root / _FREE)

    @property
    def workers(self) -> set[int]:
        """Numbers of the workers that are at it."""
        return set(self._workers)

    def close(self) -> None:
        """Ends the work of all."""
        _remove(self._root)

    def _lay(self, shards: Iterable[int]) -> None:
        for index in shards:
            (self._root / _FREE / str(index)).touch()


class Claims:
    """A worker's side.

    Args:
        own: its folder (``Tickets.admit``); None: it is alone.
        missing: numbers of the missing shards, for one that is alone.
    """

    def __init__(self, own: Path | None, missing: Iterable[int]):
        self._own, self._alone = own, sorted(missing, reverse=True)
        self._seen: list[int] = []

    @property
    def any(self) -> bool:
        """Whether there is a shard to take."""
        return bool(self._alone if self._own is None else _numbers(self._own.parent / _FREE))

    def take(self) -> int | None:
        """Claims a shard that no other worker has, the lowest first; None when there is none."""
        if self._own is None:
            return self._alone.pop() if self._alone else None
        free = self._own.parent / _FREE
        while self._own.exists():  # else its owner has given it up
            self._seen = self._seen or sorted(_numbers(free), reverse=True)
            if not self._seen:
                break
            index = self._seen.pop()
            with suppress(FileNotFoundError):  # another one was first
                os.rename(free / str(index), self._own / str(index))
                return index
        return None

    def release(self, index: int) -> None:
        """Says that a shard is made."""
        if self._own is not None:
            (self._own / str(index)).unlink()


def _numbers(folder: Path) -> set[int]:
    try:
        return {int(name) for name in os.listdir(folder) if name.isdigit()}
    except FileNotFoundError:
        return set()


def _remove(folder: Path) -> None:
    """Removes a folder in which somebody may still be at work."""
    for tries in range(_TRIES, -1, -1):
        try:
            if not folder.exists():
                return
            shutil.rmtree(folder)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.ENOTEMPTY) or not tries:
                raise
            time.sleep(_AGAIN_S)
