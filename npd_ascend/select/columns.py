"""Reads the few columns that deciding needs, of all shards, and refuses scores that are not of these rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.errors import UserError
from npd_ascend.select.metrics import delta_ifd, ifd
from npd_ascend.select.registry import Scores
from npd_ascend.store.arrays import strings, to_numpy
from npd_ascend.store.dataset import Dataset

_CUT = strings(["length"])


def read_scores(
    rollouts: Dataset, teacher: Dataset | None, student: Dataset | None, ifd_form: str
) -> tuple[np.ndarray, np.ndarray, Scores]:
    """All samples of a generation; some 100 bytes a sample stay in memory, texts do not.

    Args:
        rollouts: the samples.
        teacher, student: their scores; None: not scored, columns are NaN.
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
    unscored = [np.full(len(ids), np.nan)] * 2
    teacher_cond, teacher_uncond = unscored if teacher is None else _nlls(teacher, rollouts.folder, ids, first)
    student_cond, student_uncond = unscored if student is None else _nlls(student, rollouts.folder, ids, first)
    ifd_teacher = ifd(teacher_cond, teacher_uncond, ifd_form)
    ifd_student = ifd(student_cond, student_uncond, ifd_form)
    return (
        ids,
        first,
        Scores(
            tokens,
            truncated,
            teacher_cond,
            teacher_uncond,
            student_cond,
            student_uncond,
            ifd_teacher,
            ifd_student,
            delta_ifd(ifd_teacher, ifd_student),
        ),
    )


def _rollout_columns(rollouts: Dataset) -> Iterator[tuple[np.ndarray, ...]]:
    for table in rollouts.iter_tables(["sample_id", "tokens", "finish_reason"]):
        truncated = pc.is_in(pc.cast(table["finish_reason"], pa.string()), value_set=_CUT)  # null: not
        yield to_numpy(table["sample_id"]), to_numpy(table["tokens"]), to_numpy(pc.cast(truncated, pa.uint8()))


def _nlls(scores: Dataset, rollouts: Path, ids: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
    return _gather(_score_columns(scores, rollouts, ids, first), (np.float64, np.float64))


def _score_columns(
    scores: Dataset, rollouts: Path, ids: np.ndarray, first: np.ndarray
) -> Iterator[tuple[np.ndarray, ...]]:
    if scores.shards != len(first) - 1:
        raise UserError(
            f"{scores.folder}: {scores.shards} shards of scores for {len(first) - 1} shards of {rollouts}; "
            f"remove that folder and run again"
        )
    for shard, table in enumerate(scores.iter_tables(["sample_id", "nll_cond", "nll_uncond"])):
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
        yield to_numpy(table["nll_cond"]), to_numpy(table["nll_uncond"])


def _gather(shards: Iterator[tuple[np.ndarray, ...]], dtypes: tuple[type, ...]) -> list[np.ndarray]:
    parts = list(zip(*shards, strict=True)) or [()] * len(dtypes)
    return [
        np.concatenate([np.empty(0, dtype), *part]).astype(dtype, copy=False)
        for part, dtype in zip(parts, dtypes, strict=True)
    ]
