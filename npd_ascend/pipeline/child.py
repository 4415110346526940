"""A stage's process: ``python -m npd_ascend.pipeline.child JOB.json``.

Exit codes: 0 done, 2 the user has to mend something, 3 a damaged shard (the conductor regenerates it), 1 a fault.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from npd_ascend.config import jobs
from npd_ascend.errors import EXIT_USER, CorruptShard, UserError
from npd_ascend.pipeline.processes import die_with_parent
from npd_ascend.progress import emit

_OUT_OF_MEMORY = (
    "out of memory",
    "memory isn't enough",
    "cannot allocate memory",
    "bad_alloc",
    "alloc device memory failed",
    "memory not enough",
)
_MEMORY_ADVICE = {
    "rollout": "lower rollout.max_num_seqs, rollout.kv_cache_gib or rollout.memory_fraction",
    "annotate": "lower annotate.micro_batch, annotate.vocab_chunk_rows or annotate.row_length",
    "train": "lower train.micro_batch, train.vocab_chunk_rows or pack.row_length (train.global_batch may stay)",
}


def write_job(path: Path, room: str, job: jobs.Section) -> None:
    """Stores a job for ``main``."""
    from npd_ascend.store.atomic import write_json

    write_json(path, {"room": room, "type": type(job).__name__, "job": job.model_dump(mode="json")})


def main(argv: list[str] | None = None) -> int:
    """Runs the job in the file given as the only argument; returns the exit code."""
    (path,) = argv if argv is not None else sys.argv[1:]
    spec = json.loads(Path(path).read_text())
    room = spec["room"]
    job = getattr(jobs, spec["type"]).model_validate(spec["job"])
    die_with_parent()  # msrun and Ray stand between this process and the conductor
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        importlib.import_module(f"npd_ascend.{room}.stage").run(job)
        return 0
    except CorruptShard as e:
        emit("corrupt", dataset=e.dataset, index=e.index, text=str(e))
        return _say(e, e.exit_code)
    except UserError as e:
        emit("error", text=str(e), stage=room)
        return _say(e, EXIT_USER)
    except Exception as e:
        advice = _advice(e, room)
        traceback.print_exc()
        if advice:
            emit("error", text=advice, stage=room)
            return _say(advice, EXIT_USER)
        return 1


def _advice(e: Exception, room: str) -> str | None:
    """One line for faults of the surroundings that have a remedy."""
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{room}: the disk is full ({e.filename or 'run directory'}); free some space and run again"
    if isinstance(e, OSError) and e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{room}: cannot write {e.filename or 'in the run directory'} ({e.strerror}); choose another run.dir"
    text = str(e).lower()
    if isinstance(e, MemoryError) or any(x in text for x in _OUT_OF_MEMORY):
        return f"{room}: out of memory; {_MEMORY_ADVICE.get(room, 'use a larger machine')}"
    return None


def _say(what: object, code: int) -> int:
    print(f"error: {what}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads behind whose clean-up may hang or crash; everything of ours is on disk by now.
    os._exit(code)
