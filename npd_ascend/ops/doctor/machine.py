"""The machine as the checks see it: commands, files, variables. Tests hand in recorded answers."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from npd_ascend.ops.doctor.npu_smi import NpuSmi, parse


class Machine:
    """This machine.

    Args:
        env: environment variables.
        root: where absolute paths begin.
    """

    def __init__(self, env: Mapping[str, str] | None = None, root: Path = Path("/")):
        self.env = os.environ if env is None else env
        self.root = root

    def run(self, *command: str) -> str | None:
        """Standard output of a command; None when it is not there, fails, or takes over a minute."""
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return None

    def read(self, path: str) -> str | None:
        """Text of a file; None when it is not there or not readable."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace")
        except OSError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """Paths that match, sorted."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    def port_is_free(self, port: int) -> bool:
        """Whether nothing listens on a TCP port of this host."""
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("", port))
            except OSError:
                return False
        return True

    @cached_property
    def npu_smi(self) -> NpuSmi | None:
        """What ``npu-smi info`` says; None when there is no such command."""
        text = self.run("npu-smi", "info")
        return parse(text) if text else None

    @cached_property
    def npus(self) -> list[int]:
        """Numbers of the device files."""
        numbers = (p.name.removeprefix("davinci") for p in self.glob("/dev/davinci*"))
        return sorted(int(n) for n in numbers if n.isdigit())
