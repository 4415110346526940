"""A run directory, read by other programs: datasets as Arrow tables, the teacher's top-k as arrays.

    from npd_ascend import open_run

    generation = open_run("runs/mini").generations[0]
    table = generation.table("selection", ["sample_id", "delta_ifd", "zone"])
    top, offsets = generation.topk(range(100))

Everything is verified against its checksum as it is read, and nothing is written. A run may be read while it runs: what
is finished by then is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from npd_ascend.arrays import Array
from npd_ascend.config.load import load_config
from npd_ascend.config.schema import Config
from npd_ascend.config.stages import DATA
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.dataset import MANIFEST, Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics
from npd_ascend.store.schemas import SCHEMAS
from npd_ascend.store.topk_codec import TopK
from npd_ascend.store.topk_shard import TopKReader

_OF_A_GENERATION = {name: d for name, d in DATA.items() if "{generation" in d.place}


def open_run(path: str | Path) -> StoredRun:
    """Opens a run directory for reading, finished or not.

    Args:
        path: the ``run.dir`` of a run.

    Raises:
        UserError: there is no run.
    """
    found = StoredRun(Path(path))
    if not (found.paths.config.is_file() or found.paths.state.is_file()):
        raise UserError(
            f"{path}: no run there (neither config.yaml nor run.json); give the run.dir of a run that was started"
        )
    return found


class StoredRun:
    """A run directory; made by ``open_run``.

    Args:
        root: the directory.

    Attributes:
        paths: where everything is in it.
    """

    def __init__(self, root: Path):
        self.paths = RunDir(root)

    def __repr__(self) -> str:
        return f"<run {self.root}, {self.state.get('status', 'not begun')}, {len(self.generations)} generations>"

    @property
    def root(self) -> Path:
        """The run directory."""
        return self.paths.root

    @cached_property
    def config(self) -> Config:
        """The resolved configuration.

        Raises:
            UserError: it is missing or damaged.
        """
        return load_config(self.paths.config)

    @property
    def state(self) -> dict[str, Any]:
        """``run.json``: ``status`` (running, finished, failed, stopped), ``started`` and ``ended`` (seconds since
        1970), ``error``, ``environment``."""
        return self.paths.read_state()

    @property
    def generations(self) -> list[StoredGeneration]:
        """Generations that have been begun, in order."""
        return [StoredGeneration(self.paths, index) for index in self.paths.generations()]

    @property
    def export(self) -> Path | None:
        """Hugging Face folder of the final student; None when the run has not got so far."""
        return self.paths.export if self.paths.export_mark.is_file() else None

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl`` in order, all or of one kind: ``train``, ``lag``, ``refresh``, ``stage``,
        ``evaluate``."""
        rows = read_metrics(self.paths.metrics)
        return rows if kind is None else [r for r in rows if r["kind"] == kind]

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Results of the evaluations by name, in the order ``start``, ``refresh 1``, ..., ``end``; damaged ones are
        left out."""
        read = map(read_sealed, self.paths.evaluations.glob("*.json"))
        found = {str(result["name"]): result for result in read if result and "name" in result}
        return {name: found[name] for name in sorted(found, key=_place)}

    def prompts(self, columns: list[str] | None = None) -> pa.Table:
        """The training prompts, one a row; columns as in ``store.schemas.PROMPTS``.

        Raises:
            UserError: they are not finished, or have no such column.
            CorruptShard: a shard is damaged.
        """
        return _table(self.paths.prompts, "prompts", columns)


class StoredGeneration:
    """One generation of a run: what was made with one snapshot of the student.

    Args:
        paths: of the run.
        index: number of the generation, from 0.

    Row r of every dataset but ``packs`` is the same sample; its number r is the sample's ordinal.
    """

    def __init__(self, paths: RunDir, index: int):
        self._paths, self.index = paths, index

    def __repr__(self) -> str:
        return f"<generation {self.index} of {self._paths.root}: {', '.join(self.datasets()) or 'nothing finished'}>"

    def datasets(self) -> list[str]:
        """Names of its finished datasets: of ``rollouts``, ``topk``, ``scores_teacher``, ``unconditioned_teacher``,
        ``scores_student``, ``unconditioned_student``, ``selection``, ``packs``."""
        return [name for name in _OF_A_GENERATION if (self._folder(name) / MANIFEST).is_file()]

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A dataset, or some columns of it, as one Arrow table; schemas are in ``store.schemas``.

        Args:
            name: one of ``datasets()`` other than ``topk``.
            columns: read only these; all by default.

        Raises:
            UserError: it is not finished, or there is no such dataset or column.
            CorruptShard: a shard is damaged.
        """
        if name == "topk":
            raise UserError("topk is no table; read it with topk(ordinals)")
        return _table(self._folder(name), _OF_A_GENERATION[name].kind, columns)

    def topk(self, ordinals: Iterable[int] | None = None) -> tuple[TopK, Array]:
        """The teacher's annotation of some samples, decoded.

        Args:
            ordinals: row numbers of n samples, in any order; all by default, which takes about
                ``8 k + 12`` bytes a token.

        Returns:
            Arrays over all T tokens of these samples, one sample behind the other (``ids`` int32 [T, k], ``logprobs``
            float32 [T, k], ``logz``, ``sampled`` and ``entropy`` float32 [T], nats), and ``offsets`` int64 [n + 1]:
            sample i has the tokens ``offsets[i]:offsets[i + 1]``.

        Raises:
            UserError: it is not finished, or there is no such sample.
            CorruptShard: a shard is damaged.
        """
        reader = self._topk
        rows = np.arange(len(reader)) if ordinals is None else np.fromiter(ordinals, np.int64)
        if not len(reader):
            raise UserError(f"{reader.dataset.folder}: holds no sample")
        if len(rows) and not (0 <= rows.min() and rows.max() < len(reader)):
            raise UserError(
                f"{reader.dataset.folder}: has the samples 0 to {len(reader) - 1}, asked for "
                f"{rows.min()} to {rows.max()}"
            )
        top, lengths = reader.read_many(rows)
        return top, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @cached_property
    def _topk(self) -> TopKReader:
        return TopKReader(Dataset.open(self._folder("topk"), "topk"))

    def _folder(self, name: str) -> Path:
        if name not in _OF_A_GENERATION:
            raise UserError(f"a generation has no dataset {name!r}; it has {', '.join(_OF_A_GENERATION)}")
        return self._paths.data(name, self.index)


def _place(evaluation: str) -> tuple[bool, bool, int, str]:
    """Sorts the names of evaluations as a run makes them."""
    number = evaluation.rpartition(" ")[2]
    return evaluation != "start", evaluation == "end", int(number) if number.isdigit() else 0, evaluation


def _table(folder: Path, kind: str, columns: list[str] | None) -> pa.Table:
    dataset, known = Dataset.open(folder, kind), SCHEMAS[kind].names
    if unknown := [c for c in columns or [] if c not in known]:
        raise UserError(f"{folder}: no column {unknown[0]!r}; it has {', '.join(known)}")
    return dataset.read_all(columns)
