"""Which interpreter runs what: vLLM (torch) and MindSpore do not share one, so there are two virtual environments."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from npd_ascend.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Environments:
    """Interpreters of the two environments."""

    mindspore: Path
    rollout: Path

    @classmethod
    def find(cls) -> Environments:
        """From ``NPD_MINDSPORE_PYTHON`` and ``NPD_ROLLOUT_PYTHON``, else ``.envs`` beside the package or in the
        working directory, else this interpreter (an image that holds everything of one stage)."""
        return cls(_find("mindspore"), _find("rollout"))


def _find(name: str) -> Path:
    variable = f"NPD_{name.upper()}_PYTHON"
    given = os.environ.get(variable)
    if given:
        if not os.access(given, os.X_OK):
            raise UserError(f"{variable}={given}: no such interpreter")
        return Path(given)
    for root in (_ROOT, Path.cwd()):
        python = root / ".envs" / name / "bin" / "python"
        if python.exists():
            return python
    return Path(sys.executable)
