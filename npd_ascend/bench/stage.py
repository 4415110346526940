"""A worker's entry: scores a checkpoint on benchmarks."""

from __future__ import annotations

import logging
import os

from npd_ascend.bench import harness
from npd_ascend.bench.job import BenchJob


def run(job: BenchJob) -> None:
    """Scores all benchmarks of a job, one after the other.

    Raises:
        UserError: an input is wrong; what was scored before stays.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    harness.run(job)
