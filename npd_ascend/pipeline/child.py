"""A stage's process: ``python -m npd_ascend.pipeline.child JOB.json``.

Exit codes: 0 done, 2 the user has to mend something, 3 a damaged shard (the executor has it made again), 1 a fault.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from pydantic import ValidationError

from npd_ascend import out_of_memory
from npd_ascend.config.job import Job
from npd_ascend.config.stages import STAGES, Stage
from npd_ascend.errors import EXIT_USER, CorruptShard, UserError, of_the_disk
from npd_ascend.pipeline.processes import die_with_parent
from npd_ascend.progress import emit
from npd_ascend.visible import one_line


def write_job(path: Path, stage: str, job: Job) -> None:
    """Stores a job for ``main``."""
    from npd_ascend.store.atomic import write_json

    write_json(path, {"stage": stage, "job": job.model_dump(mode="json")})


def read_job(path: Path) -> tuple[Stage, Job]:
    """Stage and job that ``write_job`` stored.

    Raises:
        UserError: no readable job file.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        stage = STAGES[spec["stage"]]
        return stage, stage.job.model_validate(spec["job"])
    except OSError as e:
        raise UserError(f"job file {path}: cannot be read ({e.strerror})") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"job file {path}: {where}: {first['msg']}; the run writes it again") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"job file {path}: not a job: an object with 'stage' ({', '.join(STAGES)}) and 'job' is expected; "
            f"the run writes it again"
        ) from None


def main(argv: list[str] | None = None) -> int:
    """Runs the job in the file given as the only argument; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if len(given) != 1:
        return _say("expected one job file, e.g. RUN/jobs/g000-select.json", EXIT_USER)
    try:
        stage, job = read_job(Path(given[0]))
    except UserError as e:
        emit("error", text=str(e), stage="job")
        return _say(e, EXIT_USER)
    die_with_parent()  # msrun and Ray stand between this process and the executor
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        importlib.import_module(f"npd_ascend.{stage.module}.stage").run(job)
        return 0
    except CorruptShard as e:
        emit("corrupt", dataset=e.dataset, index=e.index, text=str(e))
        return _say(e, e.exit_code)
    except UserError as e:
        emit("error", text=str(e), stage=stage.module)
        return _say(e, EXIT_USER)
    except Exception as e:
        advice = _advice(e, stage.module)
        try:
            traceback.print_exc()
        except OSError:
            pass  # see _say
        if advice:
            emit("error", text=advice, stage=stage.module)
            return _say(advice, EXIT_USER)
        return 1


def _advice(e: Exception, module: str) -> str | None:
    """One line for faults of the surroundings that have a remedy."""
    if isinstance(e, OSError) and (cause := of_the_disk(e)):
        return cause
    cause = out_of_memory.advice(e, module)
    return f"{module}: {cause}" if cause else None


def _say(what: object, code: int) -> int:
    try:
        print(f"error: {one_line(str(what))}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the log is on the full disk, too
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if "MS_ROLE" in os.environ:
        sys.exit(code)  # the scheduler of msrun has to learn that a rank leaves
    # Engines leave threads behind whose clean-up may hang or crash; everything of ours is on disk by now.
    os._exit(code)
