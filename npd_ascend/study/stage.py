"""Runs arms one after the other in a worker, which keeps engines and compiled graphs between them."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from pathlib import Path

from npd_ascend.config.study import StudyConfig, arms_of, load_study
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.study.job import ArmJob
from npd_ascend.study.method import changes
from npd_ascend.study.run import run_arm
from npd_ascend.study.workbench import Workbench
from npd_ascend.workers import failures
from npd_ascend.workers.system import child_environment

_MEMORY = Path("/dev/shm")
_PREFIX = "npd-study-"


class Kept:
    """Of one study: engines, and a folder for weights on their way to them."""

    bench: Workbench | None = None

    def open(self, job: ArmJob) -> tuple[StudyConfig, Workbench, Path]:
        """The study, its engines, and the folder."""
        if self.bench is None:
            self.study = load_study(str(job.study))
            logs = self.study.study.dir / "logs"
            python = Environments.find().rollout
            self.bench = Workbench(python, logs / f"worker-{os.getpid()}", child_environment(python))
            self.scratch = _scratch(logs / f"worker-{job.worker}.scratch")
        return self.study, self.bench, self.scratch

    def close(self) -> None:
        """Ends the engines."""
        if self.bench is not None:
            self.bench.close()
            shutil.rmtree(self.scratch, ignore_errors=True)


def run(job: ArmJob, kept: Kept) -> str:
    """Runs an arm; its rows are then in the study's results.

    Returns:
        Why it failed; empty when it did not. The worker goes on with the next one either way.
    """
    study, bench, scratch = kept.open(job)
    arms = {a.key: a for a in arms_of(study, changes)}
    try:
        run_arm(arms[job.arm], study.study.dir, bench, scratch)
    except UserError as e:
        return str(e)
    except Exception as e:
        traceback.print_exc()
        return failures.cause(e)
    return ""


def _scratch(note: Path) -> Path:
    """A new folder in memory; the one that a killed worker of this place has left goes."""
    if note.exists():
        left = Path(note.read_text())
        if left.name.startswith(_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
    note.write_text(str(made))
    return made
