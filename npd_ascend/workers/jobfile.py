"""A stage's job as a file, which the executor leaves for people: ``python -m npd_ascend.workers.process JOB.json``."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from npd_ascend.config.job import Job
from npd_ascend.config.stages import STAGES, Stage
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import write_json


def write_job(path: Path, stage: str, job: Job) -> None:
    """Stores a job for ``read_job``."""
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
