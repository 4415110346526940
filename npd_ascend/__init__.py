"""Near-Policy Distillation on Ascend NPUs (arXiv:2605.05940).

The Python interface: what ``__all__`` names, importable from here. Everything else is internal and may change.

    from npd_ascend import load_config, run

    done = run(load_config("configs/mini.yaml", ["train.epochs=4"]))
    print(done.state["status"], done.generations[-1].table("selection").num_rows)

Importing the package loads no engine and no library: a name is looked up when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Read by MindSpore and MindFormers while they are imported: errors only, and no log folder in the working directory.
os.environ.setdefault("GLOG_v", "3")
# Without tempfile: a command imports this before it can take care of Ctrl-C.
_LOGS = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"npd-mindformers-{os.getuid()}")
os.environ.setdefault("LOCAL_DEFAULT_PATH", _LOGS)
os.environ.setdefault("LOG_MF_PATH", os.path.join(_LOGS, "log"))

if TYPE_CHECKING:
    from npd_ascend.api import bench_checkpoint, build_report, dry_run, evaluate_checkpoint, run
    from npd_ascend.config.load import load_config
    from npd_ascend.config.schema import Config
    from npd_ascend.errors import CorruptShard, CorruptSnapshot, MachineError, NpdError, UserError
    from npd_ascend.interrupt import Interruption
    from npd_ascend.store.stored_run import StoredGeneration, StoredRun, open_run
    from npd_ascend.store.topk_codec import TopK

__all__ = [
    "Config",
    "CorruptShard",
    "CorruptSnapshot",
    "Interruption",
    "MachineError",
    "NpdError",
    "StoredGeneration",
    "StoredRun",
    "TopK",
    "UserError",
    "__version__",
    "bench_checkpoint",
    "build_report",
    "dry_run",
    "evaluate_checkpoint",
    "load_config",
    "open_run",
    "run",
]

_MODULES = {
    "api": ("bench_checkpoint", "build_report", "dry_run", "evaluate_checkpoint", "run"),
    "config.load": ("load_config",),
    "config.schema": ("Config",),
    "errors": ("CorruptShard", "CorruptSnapshot", "MachineError", "NpdError", "UserError"),
    "interrupt": ("Interruption",),
    "store.stored_run": ("StoredGeneration", "StoredRun", "open_run"),
    "store.topk_codec": ("TopK",),
}
_PLACES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
