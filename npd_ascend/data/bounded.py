"""Helpers for processes that read what a stranger may have made, within bounds of memory and time.

A compressed file of kilobytes can stand for gigabytes, and a template of one line for hours. Libraries in C neither
count what they allocate nor stop when asked to, so such work runs in a process of its own that the kernel limits.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

MAX_ROW = 4 << 20
"""Most bytes of one row of a prompt file: some million tokens, more than any model here takes."""


def limit_memory(more: int) -> None:
    """From now on this process gets ``size`` bytes of address space beyond what it has; then ``MemoryError``."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def start(module: str, *args: str, errors: IO[Any] | int) -> subprocess.Popen[bytes]:
    """Starts ``python -m module args`` with pipes for its input and output."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
    )


def too_large(what: str) -> str:
    """Says so of a row or line."""
    return f"this {what} has more than {MAX_ROW >> 20} MB; shorten its texts or leave it out"
