"""Claims of several processes, perhaps on several machines, on the shards of one folder.

A claim is a POSIX record lock on one byte of ``claims.lock``. The kernel frees it the moment its process dies, and
child processes do not inherit it, so a dead worker's shard is never stuck and a living one's never taken.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npd_ascend.errors import UserError

_FINISH = 1 << 40  # byte whose lock guards the manifest, beyond any shard number


class Claims:
    """Exclusive claims of this process on shards of one folder.

    Hold at most one instance a folder and process: the system drops all of a process's record locks on a file
    when any of its descriptors is closed.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(folder / "claims.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise UserError(f"{folder}: cannot be written ({e.strerror}); use another run.dir") from None

    def take(self, index: int) -> bool:
        """Claims a shard; False when another process has it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, index: int) -> None:
        """Gives a claim back."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, index)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Waits for the right to write the manifest."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, _FINISH)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _FINISH)

    def close(self) -> None:
        """Gives all claims back."""
        os.close(self._fd)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
