"""What tests of several rooms share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from npd_ascend.ops.environments import Environments

PAGE = 4096


class Disk:
    """A small file system of its own."""

    def __init__(self, root: Path):
        self.root = root
        self._ballast = root / "ballast"

    def leave(self, pages: int) -> None:
        """Fills it up but for so many pages."""
        self.free()
        with open(self._ballast, "wb", buffering=0) as f:
            room = os.statvfs(self.root).f_bavail - pages
            os.posix_fallocate(f.fileno(), 0, max(room, 1) * PAGE)
        assert os.statvfs(self.root).f_bavail == pages

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def read_only(self, yes: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.fixture(scope="session")
def engines():
    """The interpreters of both engines; skips where one environment stands for both."""
    found = Environments.find()
    if found.mindspore == found.rollout:
        pytest.skip("needs both environments (scripts/setup_env.sh)")
    return found
