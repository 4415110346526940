"""Where a dry run finds CANN's libraries, and the environment of its process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from npd_ascend.errors import UserError
from npd_ascend.ops import machine_cache
from npd_ascend.ops.ascend import standins

_ASK = """import importlib.util, json
from importlib.metadata import version
found = importlib.util.find_spec("mindspore")
print(json.dumps([list(found.submodule_search_locations)[0], version("mindspore")] if found else None))"""
_PACKAGE = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Cann:
    """CANN, or its stand-ins.

    Attributes:
        folder: of the stand-ins; None: CANN is installed, and its environment is set.
    """

    folder: Path | None = None

    @property
    def name(self) -> str:
        """For people."""
        return "CANN" if self.folder is None else "stand-ins for CANN"

    @classmethod
    def find(cls, python: Path) -> Cann:
        """The installed one, else stand-ins for the MindSpore of an interpreter, made where they are not yet.

        Raises:
            UserError: they cannot be made.
        """
        home = Path(os.environ.get("ASCEND_HOME_PATH") or "/nowhere")
        if any((home / lib / "libascendcl.so").exists() for lib in ("lib64", "runtime/lib64")):
            return cls()
        package, version = _mindspore(python)
        maker = hashlib.sha256(Path(standins.__file__).read_bytes() + str(package).encode()).hexdigest()[:12]
        # MindSpore looks for a folder of this name in the library's path.
        folder = machine_cache.folder() / f"standins-{version}-{maker}" / "cann"
        if not folder.exists():
            standins.build(package, version, folder)
        return cls(folder)

    def environment(self, python: Path, rank: int, size: int) -> dict[str, str]:
        """Variables of a process that compiles as rank ``rank`` of ``size``."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("MS_")}
        # What a kernel was chosen for is logged by one module, at its level of information.
        env |= {
            "MS_SIMULATION_LEVEL": "1",
            "RANK_SIZE": str(size),
            "RANK_ID": str(rank),
            "GLOG_v": "3",
            "MS_SUBMODULE_LOG_v": "{DEVICE:1}",
            "DEVICE_ID": "0",
            "PATH": f"{python.parent}{os.pathsep}{env.get('PATH', '')}",
        }
        paths = [str(_PACKAGE)]
        if self.folder is not None:
            env |= {
                "LD_LIBRARY_PATH": str(self.folder / "lib64"),
                "ASCEND_HOME_PATH": str(self.folder),
                "ASCEND_OPP_PATH": str(self.folder / "opp"),
            }
            paths.append(str(self.folder / "python"))
        given = [os.path.abspath(p) for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]  # it runs elsewhere
        env["PYTHONPATH"] = os.pathsep.join([*paths, *given])
        return env


def _mindspore(python: Path) -> tuple[Path, str]:
    """Package folder and version of an interpreter's MindSpore."""
    try:
        done = subprocess.run([str(python), "-c", _ASK], capture_output=True, text=True)
        found = json.loads(done.stdout)
    except (OSError, ValueError):
        found = None
    if not found:
        raise UserError(f"{python}: has no MindSpore; --compile needs it: run scripts/setup_env.sh")
    return Path(found[0]), found[1]
