"""What every job is: all that a stage needs, as paths and settings, in one JSON file.

A stage is a package ``npd_ascend.<module>`` with its job's class in ``job.py`` and ``run(job)`` in ``stage.py``; it
reads finished datasets, writes its own and knows nothing of the run around it. The executor writes jobs to
``<run>/jobs/`` and starts one child process each.

A job's fingerprint is the hash of all its fields, by their marks (``config/marks.py``): of an input its content counts,
not its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from npd_ascend.config.marks import OUTPUT, SPEED
from npd_ascend.config.schema import Section


class Device(Section):
    """Resolved device settings of a stage."""

    target: Annotated[Literal["cpu", "ascend"], SPEED] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_device_memory: Annotated[str, SPEED] = "58GB"
    deterministic: Annotated[bool, SPEED] = True


class Job(Section):
    """Base of all jobs."""

    fingerprint: Annotated[str, OUTPUT]
    """Identity of what the stage makes: the hash of all that it depends on."""

    @property
    def unread(self) -> frozenset[str]:
        """Fields that the stage does not look at under these settings, so that they do not count."""
        return frozenset()


class SharedJob(Job):
    """Base of jobs whose shards several workers share; they have a method ``shares`` (``workers/shares.py``)."""

    own: Annotated[Path | None, OUTPUT] = None
    """Folder of the worker that is given the job (``store/claims.py``); None: it is alone."""


class Target(Section):
    """A dataset that a job is to make, beside others with fingerprints of their own."""

    folder: Path
    fingerprint: str


class Declaration(Section):
    """What the files beside a student's weights must say of how it was trained."""

    tokenizer: Path
    """Folder whose tokenizer files belong to it."""
    stop_token_ids: list[int]
    """Ids that end an answer, the one that it was trained to give first."""
    chat_template: str | None
    """None: it was trained on prompts as they stand; the tokenizer keeps its own template."""
    special_tokens: dict[str, str | None]
    """Entries of tokenizer_config.json."""
