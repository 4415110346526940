"""What one generation's datasets say: decisions, lengths, packing, bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.arrays import Array
from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.report.paper import DELTA
from npd_ascend.report.rewards import Rewards, read_rewards
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import GenerationDir

_T = TypeVar("_T")


@dataclass
class Rollouts:
    """Answers of a generation.

    Attributes:
        lengths: [N] int64, tokens of each answer.
        truncated: share of answers cut at max_new_tokens.
        loops: share of answers that end in a repeated cycle (``store.traits.looping``).
        identical: share of answers, empty ones aside, whose tokens are also the answer to a different prompt.
    """

    samples: int
    lengths: Array
    truncated: float
    loops: float
    identical: float


@dataclass
class Selection:
    """Decisions over all samples of a generation.

    Attributes:
        filter: the filter's name.
        delta: [N'] float64, the finite Δ-IFD values.
        lower, upper: bounds on Δ-IFD: the filter's, or, where another value filters, those of the proximal zone.
        filtered: whether the filter looked at Δ-IFD.
        zone_upper: δ, where the proximal zone ends.
        ifd_form: how IFD was computed, as ``select.ifd_form``.
    """

    samples: int
    kept: int
    filter: str
    zones: dict[str, int]
    reasons: dict[str, int]
    delta: Array
    lower: float | None
    upper: float | None
    filtered: bool
    note: str | None
    zone_upper: float
    ifd_form: str

    @property
    def zones_as_paper(self) -> bool:
        """Whether zones are cut as in the paper's Table 13, so that shares can be compared with it."""
        return self.zone_upper == DELTA and self.ifd_form == "loss_ratio"

    @property
    def rule_as_paper(self) -> bool:
        """Whether the filter is the paper's with its bounds, so that keep rates can be compared with it."""
        return self.zones_as_paper and self.filter == "delta_ifd" and (self.lower, self.upper) == (0.0, DELTA)

    @property
    def keep_rate(self) -> float:
        """Share of samples that training sees."""
        return self.kept / self.samples if self.samples else float("nan")

    @property
    def comparable(self) -> int:
        """Samples that the filter could keep: answers of groups that are all alike teach nothing, whatever it says."""
        return self.samples - self.reasons.get("equal", 0)

    @property
    def scored(self) -> bool:
        """Whether any sample has a Δ-IFD at all."""
        return len(self.delta) > 0

    def share(self, zone: str) -> float:
        """Share of a zone among all samples."""
        return self.zones.get(zone, 0) / self.samples if self.samples else float("nan")


@dataclass
class Packing:
    """One epoch's plan (all epochs of a generation have the same rows in another order).

    Attributes:
        density: tokens / (rows x row length).
        least_rows: rows that no packing could go below.
        imbalance: time that ranks lose waiting for the costliest one, as a share; mean over epochs.
        ranks: ranks that ``imbalance`` supposes.
        truncated, dropped: samples cut at a row's length, and left out for it.
    """

    epochs: int
    rows: int
    least_rows: int | None
    samples: int
    tokens: int
    row_length: int
    density: float
    imbalance: float | None
    ranks: int | None
    truncated: int
    dropped: int


@dataclass
class Store:
    """The teacher's annotation on disk.

    Attributes:
        bytes: of the shards.
        tokens: response tokens in them.
        mass: token mean of the teacher's probability inside the stored top-k.
    """

    bytes: int
    tokens: int
    mass: float | None

    @property
    def bytes_per_token(self) -> float:
        """Cost of one response token."""
        return self.bytes / self.tokens if self.tokens else float("nan")


@dataclass
class Generation:
    """One generation; parts that are not finished are None. ``entropy``: token mean of the teacher's, nats;
    ``rewards``: of runs that have some."""

    index: int
    rollouts: Rollouts | None
    selection: Selection | None
    packing: Packing | None
    store: Store | None
    entropy: float | None
    rewards: Rewards | None = None


def read_generation(folder: GenerationDir, index: int, prompts: Array, problems: list[str]) -> Generation:
    """Reads the finished datasets of a generation; damage is named in ``problems``, not raised.

    Args:
        folder: its folder.
        index: its number.
        prompts: [P] int64, hash of each prompt (see ``prompt_hashes``).
        problems: gets a line for each dataset that cannot be read.
    """

    def attempt(path: Path, kind: str, read: Callable[[Dataset], _T]) -> _T | None:
        if not (path / "manifest.json").exists():
            return None
        try:
            return read(Dataset.open(path, kind))
        except UserError as e:
            problems.append(str(e))
        except (KeyError, TypeError, ValueError) as e:
            problems.append(f"{path}/manifest.json: not as this version writes it ({type(e).__name__}: {e})")
        return None

    rollouts = attempt(folder.rollouts, "rollouts", lambda d: _rollouts(d, prompts))
    selection = attempt(folder.selection, "selection", _selection)
    entropy = attempt(folder.teacher_scores, "scores", _entropy)
    packing = attempt(folder.packs, "packs", _packing)
    store = attempt(folder.topk, "topk", _store)
    rewards = attempt(folder.rewards, "rewards", lambda d: read_rewards(folder))
    return Generation(index, rollouts, selection, packing, store, entropy, rewards)


def prompt_hashes(folder: Path) -> Array:
    """[P] int64, the same for equal prompts; empty where they cannot be read."""
    try:
        return np.asarray(Dataset.open(folder, "prompts").read_all(["prompt_hash"])["prompt_hash"].to_numpy())
    except (UserError, CorruptShard):
        return np.zeros(0, np.int64)


def _rollouts(dataset: Dataset, prompts: Array) -> Rollouts:
    # A few bytes an answer, so that those of all shards can be compared with each other.
    table = dataset.read_all(["prompt_index", "tokens", "response_hash", "loops"])
    lengths, asked = table["tokens"].to_numpy().astype(np.int64), table["prompt_index"].to_numpy()
    asked = prompts[asked] if len(prompts) > asked.max(initial=-1) else asked
    said = lengths > 0
    counts = (
        int(dataset.extra["truncated"]),
        int(pc.sum(table["loops"]).as_py() or 0),
        shared(table["response_hash"].to_numpy()[said], asked[said]),
    )
    truncated, loops, identical = (c / max(dataset.rows, 1) for c in counts)
    return Rollouts(dataset.rows, lengths, truncated, loops, identical)


def shared(answers: Array, prompts: Array) -> int:
    """How many answers were given to more than one prompt.

    Args:
        answers: [N] hash of each answer.
        prompts: [N] hash, or number, of the prompt that it answers.
    """
    if not len(answers):
        return 0
    order = np.lexsort((prompts, answers))
    first = np.flatnonzero(np.diff(answers[order], prepend=~answers[order[0]]))  # of each run of equal answers
    last = np.append(first[1:], len(order)) - 1
    several = prompts[order[first]] != prompts[order[last]]
    return int((last - first + 1)[several].sum())


def _selection(dataset: Dataset) -> Selection:
    table = dataset.read_all(["keep", "reason", "zone", "delta_ifd"])
    delta = table["delta_ifd"].to_numpy()
    extra = dataset.extra
    filtered = bool(extra["on_delta"])
    bounds = extra["bounds"] if filtered else {"lower": 0.0, "upper": extra["zone_upper"]}
    return Selection(
        table.num_rows,
        int(pc.sum(table["keep"]).as_py() or 0),
        str(extra["filter"]),
        _counts(table["zone"]),
        _counts(table["reason"]),
        delta[np.isfinite(delta)],
        bounds["lower"],
        bounds["upper"],
        filtered,
        extra.get("note"),
        float(extra["zone_upper"]),
        str(extra.get("ifd_form", "loss_ratio")),
    )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    values = pc.value_counts(column.cast(pa.string())).to_pylist()
    return {str(v["values"]): int(v["counts"]) for v in sorted(values, key=lambda v: -v["counts"])}


def _entropy(dataset: Dataset) -> float | None:
    """Token mean of the entropy."""
    table = dataset.read_all(["tokens", "entropy"])
    tokens, entropy = table["tokens"].to_numpy(), table["entropy"].to_numpy()
    known = np.isfinite(entropy) & (tokens > 0)
    return float(np.average(entropy[known], weights=tokens[known])) if known.any() else None


def _store(dataset: Dataset) -> Store:
    records = dataset.manifest["shards"]
    tokens, mass = (sum(r["meta"][key] for r in records) for key in ("tokens", "mass"))
    return Store(sum(int(r["bytes"]) for r in records), int(tokens), float(mass) / tokens if tokens else None)


def _packing(dataset: Dataset) -> Packing:
    e: dict[str, Any] = dataset.extra
    rows, row_length, tokens = int(e["rows"]), int(e["row_length"]), int(e["tokens"])
    return Packing(
        dataset.shards,
        rows,
        e.get("lower_bound_rows"),
        int(e["samples"]),
        tokens,
        row_length,
        tokens / (rows * row_length) if rows else float("nan"),
        e.get("imbalance"),
        e.get("slices"),
        int(e["truncated_samples"]),
        int(e["dropped_samples"]),
    )
