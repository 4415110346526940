"""The folder of what is made once for a machine and kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "NPD_CACHE"
"""Names the folder; else it is ``npd_ascend`` in $XDG_CACHE_HOME or ``~/.cache``."""


def folder() -> Path:
    """The folder, which need not exist yet."""
    if given := os.environ.get(VARIABLE):
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npd_ascend"
