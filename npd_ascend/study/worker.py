"""A process that runs arms one after the other: ``python -m npd_ascend.study.worker STUDY.yaml INDEX``.

Keys of arms come in on stdin, one a line; answers go out as JSON lines on what was stdout at the start:
``{"event": "done"|"failed", "key", "text"}``. The end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from npd_ascend.config.study import arms_of, load_study
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import Environments
from npd_ascend.pipeline.processes import child_environment, die_with_parent
from npd_ascend.progress import ENV as PROGRESS_ENV
from npd_ascend.study.method import changes

_MEMORY = Path("/dev/shm")
_PREFIX = "npd-study-"


def main() -> None:
    """Entry."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    die_with_parent()
    study = load_study(sys.argv[1])
    root = study.study.dir
    logs = root / "logs" / f"worker-{os.getpid()}"
    logs.mkdir(parents=True, exist_ok=True)
    progress = logs / "progress.jsonl"
    os.environ[PROGRESS_ENV] = str(progress.resolve())
    from npd_ascend.study.run import run_arm
    from npd_ascend.study.workbench import Workbench

    python = Environments.find().rollout
    arms = {a.key: a for a in arms_of(study, changes)}
    scratch = _scratch(root / "logs" / f"worker-{sys.argv[2]}.scratch")
    bench = Workbench(python, logs, child_environment(python, progress))
    try:
        for line in sys.stdin:
            key, text = line.strip(), ""
            try:
                run_arm(arms[key], root, bench, scratch)
            except UserError as e:
                text = str(e)
            except Exception as e:
                traceback.print_exc()
                text = f"{type(e).__name__}: {e}".splitlines()[0]
            answers.write(json.dumps({"event": "failed" if text else "done", "key": key, "text": text}) + "\n")
            answers.flush()
    finally:
        bench.close()
        shutil.rmtree(scratch, ignore_errors=True)
    sys.stderr.flush()
    os._exit(0)  # engines leave threads behind whose clean-up may hang


def _scratch(note: Path) -> Path:
    """A new folder in memory; the one that a killed worker of this place has left goes."""
    if note.exists():
        left = Path(note.read_text())
        if left.name.startswith(_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
    note.write_text(str(made))
    return made


if __name__ == "__main__":
    main()
