"""Reads the few columns that deciding needs, of all shards, and refuses scores that are not of these rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.select.metrics import delta_ifd, ifd
from npd_ascend.select.registry import IFD, Scores
from npd_ascend.store.arrays import strings, to_numpy
from npd_ascend.store.dataset import Dataset

_CUT = strings(["length"])


def read_scores(rollouts: Dataset, stored: Mapping[str, Dataset], ifd_form: str) -> tuple[Array, Array, Scores]:
    """All samples of a generation; some 100 bytes a sample stay in memory, texts do not.

    Args:
        rollouts: the samples.
        stored: scores of them by name (``config.stages.QUANTITIES``); columns of those that are not there are NaN.
        ifd_form: see ``metrics.ifd``.

    Returns:
        sample ids [N] int64; first row of each shard [shards + 1] int64; the scores.

    Raises:
        UserError: scores and rollouts differ in shards, rows or sample ids.
        CorruptShard: a shard's checksum differs.
    """
    ids, tokens, truncated = _gather(_rollout_columns(rollouts), (np.int64, np.int64, np.bool_))
    sizes = [record["rows"] for record in rollouts.manifest["shards"]]
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def column(name: str, which: str) -> Array:
        if name not in stored:
            return np.full(len(ids), np.nan)
        return _gather(_score_column(stored[name], which, rollouts.folder, ids, first), (np.float64,))[0]

    teacher, teacher_alone, student, student_alone = (column(name, "nll") for name in IFD)
    ifd_teacher, ifd_student = ifd(teacher, teacher_alone, ifd_form), ifd(student, student_alone, ifd_form)
    return (
        ids,
        first,
        Scores(
            tokens,
            truncated,
            teacher,
            teacher_alone,
            student,
            student_alone,
            ifd_teacher,
            ifd_student,
            delta_ifd(ifd_teacher, ifd_student),
            partial(column, which="entropy"),
        ),
    )


def _rollout_columns(rollouts: Dataset) -> Iterator[tuple[Array, ...]]:
    for table in rollouts.iter_tables(["sample_id", "tokens", "finish_reason"]):
        truncated = pc.is_in(pc.cast(table["finish_reason"], pa.string()), value_set=_CUT)  # null: not
        yield to_numpy(table["sample_id"]), to_numpy(table["tokens"]), to_numpy(pc.cast(truncated, pa.uint8()))


def _score_column(scores: Dataset, which: str, rollouts: Path, ids: Array, first: Array) -> Iterator[tuple[Array]]:
    if scores.shards != len(first) - 1:
        raise UserError(
            f"{scores.folder}: {scores.shards} shards of scores for {len(first) - 1} shards of {rollouts}; "
            f"remove that folder and run again"
        )
    for shard, table in enumerate(scores.iter_tables(["sample_id", which])):
        want, got = ids[first[shard] : first[shard + 1]], to_numpy(table["sample_id"])
        if len(got) != len(want):
            raise UserError(
                f"{scores.folder}: shard {shard} has {len(got)} rows, {rollouts} has {len(want)}; "
                f"remove that folder and run again"
            )
        if (got != want).any():
            row = int(np.flatnonzero(got != want)[0])
            raise UserError(
                f"{scores.folder}: shard {shard} row {row} is sample {got[row]}, in {rollouts} it is "
                f"{want[row]}; remove that folder and run again"
            )
        yield (to_numpy(table[which]),)


def _gather(shards: Iterator[tuple[Array, ...]], dtypes: tuple[type, ...]) -> list[Array]:
    parts = list(zip(*shards, strict=True)) or [()] * len(dtypes)
    return [
        np.concatenate([np.empty(0, dtype), *part]).astype(dtype, copy=False)
        for part, dtype in zip(parts, dtypes, strict=True)
    ]
