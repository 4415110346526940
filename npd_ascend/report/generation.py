"""What one generation's datasets say: decisions, lengths, packing, bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.config.schema import Config
from npd_ascend.errors import UserError
from npd_ascend.rows.balance import imbalance, slices_of
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import GenerationDir

# Token columns are read from at most so many shards, evenly spread: a report must not read a whole big run.
_MAX_SHARDS = 48
ZONES = ("proximal", "degenerate", "disconnect", "undefined")
_T = TypeVar("_T")


@dataclass
class Rollouts:
    """Lengths [N] int64 in tokens and finish reasons, of all answers or of the shards that were looked at."""

    samples: int
    lengths: np.ndarray
    finish: dict[str, int]

    @property
    def truncated(self) -> float:
        """Share of answers cut at max_new_tokens."""
        return self.finish.get("length", 0) / max(sum(self.finish.values()), 1)


@dataclass
class Selection:
    """Decisions over all samples of a generation.

    Attributes:
        delta: [N'] float64, the finite Δ-IFD values.
        lower, upper: bounds of the filter in force, where known.
    """

    samples: int
    kept: int
    zones: dict[str, int]
    reasons: dict[str, int]
    delta: np.ndarray
    lower: float | None
    upper: float | None

    @property
    def keep_rate(self) -> float:
        return self.kept / self.samples if self.samples else float("nan")

    def share(self, zone: str) -> float:
        """Share of a zone among all samples."""
        return self.zones.get(zone, 0) / self.samples if self.samples else float("nan")


@dataclass
class Packing:
    """The plans of all local epochs together.

    Attributes:
        rows, tokens: summed over the epochs.
        samples: distinct samples in the first epoch's plan.
        density: tokens / (rows x row length).
        imbalance: time that ranks lose waiting for the costliest one, as a share (see rows.balance).
        ranks: ranks that ``imbalance`` supposes.
        truncated, dropped: samples cut at a row's length, and kept samples that stand in no row.
    """

    epochs: int
    rows: int
    samples: int
    tokens: int
    row_length: int
    density: float
    imbalance: float | None
    ranks: int
    truncated: int
    dropped: int


@dataclass
class Store:
    """Bytes of the teacher's annotation."""

    bytes: int
    tokens: int
    k: int | None
    mass: float | None

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens if self.tokens else float("nan")


@dataclass
class Generation:
    """One generation; parts that are not finished are None."""

    index: int
    rollouts: Rollouts | None
    selection: Selection | None
    packing: Packing | None
    store: Store | None
    entropy: float | None
    snapshot_exported: bool = False
    problems: list[str] = field(default_factory=list)


def read_generation(folder: GenerationDir, index: int, config: Config | None, problems: list[str]) -> Generation:
    """Reads the finished datasets of a generation; damage is named in ``problems``, not raised."""

    def attempt(path: Any, kind: str, read: Callable[[Dataset], _T]) -> _T | None:
        try:
            dataset = Dataset.open(path, kind)
        except UserError as e:
            if (path / "manifest.json").is_file():
                problems.append(str(e))
            return None
        try:
            return read(dataset)
        except UserError as e:
            problems.append(str(e))
            return None

    rollouts = attempt(folder.rollouts, "rollouts", _rollouts)
    selection = attempt(folder.selection, "selection", lambda d: _selection(d, config))
    scores = attempt(folder.teacher_scores, "scores", _scores)
    kept = selection.kept if selection else None
    packing = attempt(folder.packs, "packs", lambda d: _packing(d, folder, kept, config))
    store = attempt(folder.topk, "topk", lambda d: _store(d, scores[1] if scores else None))
    return Generation(index, rollouts, selection, packing, store, scores[0] if scores else None,
                      folder.next_snapshot.is_dir())


def spread(shards: int, at_most: int = _MAX_SHARDS) -> list[int]:
    """Numbers of at most so many shards, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, shards - 1, min(shards, at_most))}) if shards else []


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    values = pc.value_counts(column.cast(pa.string()))
    return {str(v["values"]): int(v["counts"]) for v in values.to_pylist() if v["values"] is not None}


def _rollouts(dataset: Dataset) -> Rollouts:
    lengths, finish = [], {}
    for index in spread(dataset.shards):
        table = dataset.read(index, ["response_ids", "finish_reason"])
        lengths.append(pc.list_value_length(table["response_ids"]).to_numpy().astype(np.int64))
        for reason, n in _counts(table["finish_reason"]).items():
            finish[reason] = finish.get(reason, 0) + n
    return Rollouts(dataset.rows, np.concatenate(lengths) if lengths else np.zeros(0, np.int64), finish)


def _selection(dataset: Dataset, config: Config | None) -> Selection:
    table = dataset.read_all(["keep", "reason", "zone", "delta_ifd"])
    delta = table["delta_ifd"].to_numpy()
    noted = dataset.extra.get("bounds", dataset.extra)
    bounds: list[float | None] = []
    for name in ("lower", "upper"):
        value = noted.get(name) if isinstance(noted, dict) else None
        if value is None and config and getattr(config.select, f"{name}_quantile") is None:
            value = getattr(config.select, name)
        bounds.append(value)
    return Selection(table.num_rows, int(pc.sum(table["keep"]).as_py() or 0), _counts(table["zone"]),
                     _counts(table["reason"]), delta[np.isfinite(delta)], bounds[0], bounds[1])


def _scores(dataset: Dataset) -> tuple[float | None, float | None]:
    """Token means of the teacher's entropy and of its mass inside the top-k."""
    table = dataset.read_all(["tokens", "entropy", "topk_mass"])
    tokens = table["tokens"].to_numpy()

    def mean(name: str) -> float | None:
        x = table[name].to_numpy()
        ok = np.isfinite(x) & (tokens > 0)
        return float(np.average(x[ok], weights=tokens[ok])) if ok.any() else None

    return mean("entropy"), mean("topk_mass")


def _store(dataset: Dataset, mass: float | None) -> Store:
    records = dataset.manifest["shards"]
    tokens = sum(int(r.get("meta", {}).get("tokens", 0)) for r in records)
    return Store(sum(int(r["bytes"]) for r in records), tokens, dataset.extra.get("k"), mass)


def _packing(dataset: Dataset, folder: GenerationDir, kept: int | None, config: Config | None) -> Packing:
    row_length = int(dataset.extra.get("row_length") or (config.pack.row_length if config else 0))
    group = config.train.global_batch if config else 1
    ranks = config.train.data_parallel if config and config.train.data_parallel > 1 else slices_of(group)
    rows = tokens = 0
    losses: list[float] = []
    in_plan = 0
    for index, table in enumerate(dataset.iter_tables()):
        rows += table.num_rows
        row = np.repeat(np.arange(table.num_rows), pc.list_value_length(table["samples"]).to_numpy())
        prompt, response = (pc.list_flatten(table[c]).to_numpy() for c in ("prompt_tokens", "response_tokens"))
        length = (prompt + response).astype(np.float64)
        tokens += int(length.sum())
        if ranks > 1 and table.num_rows >= group:
            costs = np.bincount(row, length**2, table.num_rows)
            losses.append(imbalance(costs, group, ranks).mean)
        if index == 0:
            in_plan = len(pc.list_flatten(table["samples"]).unique())
    noted = dataset.extra
    dropped = noted.get("dropped", max(kept - in_plan, 0) if kept is not None else 0)
    return Packing(dataset.shards, rows, in_plan, tokens, row_length,
                   tokens / (rows * row_length) if rows and row_length else float("nan"),
                   float(np.mean(losses)) if losses else None, ranks, int(noted.get("truncated", 0)), int(dropped))
