"""Everything the report shows, read from the store; what is not there yet stays None or empty."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.load import load_config
from npd_ascend.config.schema import Config, SyncConfig
from npd_ascend.errors import UserError
from npd_ascend.report.generation import Generation, prompt_hashes, read_generation
from npd_ascend.report.paper import LAG
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import TERM, plain, read_metrics
from npd_ascend.sync.registry import SyncPolicy, policy_of


@dataclass
class Evaluation:
    """Accuracy of one checkpoint on the held-out set.

    Attributes:
        name: ``start``, ``refresh 1``, ``end``.
        interval: confidence bounds of the accuracy.
        pass_at: k -> estimated share of prompts with a right answer among k.
        truncated: share of answers cut at the length limit.
        progress, step: epochs and optimiser steps behind it; None when its name tells no point of the run.
        answers: a few of them, {"prompt", "answer" (expected), "response", "correct", "thinking"}.
    """

    name: str
    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    pass_at: dict[str, float]
    truncated: float | None
    mean_tokens: float | None
    progress: float | None
    step: float | None
    answers: list[dict[str, Any]]


@dataclass
class StageTime:
    """What one stage took, over all generations.

    Attributes:
        seconds: wall time.
        busy: seconds of it at work on data, without start-up of processes, engines and compilation.
        compiling: seconds of it that graphs took to compile, or to load from an earlier process's.
        tokens, samples: what it processed.
    """

    stage: str
    seconds: float = 0.0
    busy: float = 0.0
    compiling: float = 0.0
    tokens: int = 0
    samples: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Rate while busy."""
        return self.tokens / self.busy if self.tokens and self.busy > 0 else None

    @property
    def samples_per_second(self) -> float | None:
        """Rate while busy; None for the stages that count rows or steps."""
        counts = self.stage not in ("pack", "train") and self.samples and self.busy > 0
        return self.samples / self.busy if counts else None


@dataclass
class Run:
    """A run as the store tells it.

    Attributes:
        train, lag, refreshes, stage: rows of metrics.jsonl of that kind, in order.
        problems: what could not be read, one line each.
    """

    root: Path
    config: Config | None
    config_text: str
    state: dict[str, Any]
    train: list[dict[str, Any]]
    lag: list[dict[str, Any]]
    refreshes: list[dict[str, Any]]
    stage: list[dict[str, Any]]
    evaluations: list[Evaluation]
    generations: list[Generation]
    problems: list[str] = field(default_factory=list)

    @property
    def policy(self) -> SyncPolicy:
        """Its sync policy; one that never refreshes where configuration or policy cannot be read."""
        try:
            if self.config:
                return policy_of(self.config)
        except UserError:  # a policy of the user's that is not installed here
            pass
        return SyncPolicy(SyncConfig(), 0.0)

    @property
    def lag_bound(self) -> float:
        """Lag that should not be exceeded, nats a token."""
        bound = self.policy.lag_bound
        return LAG if bound is None else bound

    @property
    def terms(self) -> list[str]:
        """Keys of ``train`` rows that hold further loss terms, beside ``ce`` and ``kd``."""
        return sorted({key for row in self.train for key in row if key.startswith(TERM)})

    @property
    def teaches(self) -> bool:
        """Whether a teacher has a part in it: always, but where rewards are all that the loss looks at."""
        return not self.rewarded or any(g.store for g in self.generations)

    @property
    def rewarded(self) -> list[Generation]:
        """Generations whose answers were judged."""
        return [g for g in self.generations if g.rewards]

    def steps_of(self, generation: int, key: str) -> list[float]:
        """Values of ``key`` at the optimiser steps of a generation, in order."""
        return [float(r[key]) for r in self.train if r.get("generation", 0) == generation and key in r]

    def evaluation(self, name: str) -> Evaluation | None:
        """The evaluation of that name."""
        return next((e for e in self.evaluations if e.name == name), None)

    def times(self) -> list[StageTime]:
        """Time by stage, in the order of their first appearance."""
        found: dict[str, StageTime] = {}
        for row in self.stage:
            t = found.setdefault(str(row.get("stage")), StageTime(str(row.get("stage"))))
            t.seconds += row.get("seconds", 0.0)
            t.busy += row.get("busy", row.get("seconds", 0.0))
            t.compiling += row.get("compile", 0.0)
            t.tokens += int(row.get("tokens", 0))
            t.samples += int(row.get("samples", 0))
        return list(found.values())

    def wall_seconds(self) -> float | None:
        """Time in which at least one stage was at work: overlap counts once, pauses between starts do not."""
        spans = sorted((r["time"] - r["seconds"], r["time"]) for r in self.stage if "time" in r and "seconds" in r)
        total, end = 0.0, -np.inf
        for a, b in spans:
            total += max(b - max(a, end), 0.0)
            end = max(end, b)
        return total if spans else None


def collect(run_dir: Path) -> Run:
    """Reads a run directory, finished or not.

    Args:
        run_dir: the run; any part of it may be missing or damaged (named in ``Run.problems``).

    Raises:
        UserError: there is no run at all.
    """
    run = RunDir(Path(run_dir))
    metrics = read_metrics(run.metrics)
    if not (run.config.is_file() or run.state.is_file() or metrics or run.generations()):
        raise UserError(
            f"{run_dir}: no run there (neither config.yaml nor run.json nor metrics.jsonl); "
            "give the run.dir of a run that was started"
        )
    problems: list[str] = []
    config, text = _config(run, problems)
    rows = {kind: [plain(r) for r in metrics if r["kind"] == kind] for kind in ("train", "lag", "refresh", "stage")}
    hashes = {folder: prompt_hashes(folder) for folder in {run.prompts_of(i) for i in run.generations()}}
    generations = [
        read_generation(run.generation(i), i, hashes[run.prompts_of(i)], problems) for i in run.generations()
    ]
    return Run(
        run.root,
        config,
        text,
        run.read_state(),
        rows["train"],
        rows["lag"],
        rows["refresh"],
        rows["stage"],
        _evaluations(run.evaluations, rows, problems),
        generations,
        problems,
    )


def series(rows: list[dict[str, Any]], key: str, x: str = "step") -> tuple[Array, Array]:
    """Values of ``key`` over ``x`` as float arrays [N]; rows without both are left out."""
    pairs = np.array([(r[x], r[key]) for r in rows if x in r and key in r], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def last(rows: list[dict[str, Any]], key: str) -> float | None:
    """The last value of ``key``."""
    _, y = series(rows, key)
    return float(y[-1]) if len(y) else None


def _config(run: RunDir, problems: list[str]) -> tuple[Config | None, str]:
    try:
        text = run.config.read_text(errors="replace")
        return load_config(run.config), text
    except OSError:
        problems.append("config.yaml is missing: settings are not shown")
        return None, ""
    except UserError as e:
        problems.append(str(e))
        return None, text


def _evaluations(folder: Path, rows: dict[str, list[dict[str, Any]]], problems: list[str]) -> list[Evaluation]:
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            raw = json.loads(path.read_text())
            low, high = raw["interval"]
            name = str(raw["name"])
            answers = [
                {k: a.get(k) for k in ("prompt", "answer", "response", "correct", "thinking")}
                for a in raw.get("samples") or []
            ]
            found.append(
                Evaluation(
                    name,
                    int(raw["n"]),
                    int(raw["correct"]),
                    float(raw["accuracy"]),
                    (float(low), float(high)),
                    {str(k): float(v) for k, v in (raw.get("pass_at") or {}).items()},
                    raw.get("truncated"),
                    raw.get("mean_tokens"),
                    _place_of(name, rows, "progress"),
                    _place_of(name, rows, "step"),
                    answers,
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            problems.append(f"evaluations/{path.name} cannot be read ({type(e).__name__}: {e})")
    return sorted(found, key=lambda e: (e.progress is None, e.progress or 0.0, e.name != "start", e.name))


def _place_of(name: str, rows: dict[str, list[dict[str, Any]]], key: str) -> float | None:
    if name == "start":
        return 0.0
    if name == "end":
        return last(rows["train"], key)
    kind, _, index = name.rpartition(" ")
    if kind == "refresh" and index.isdigit():
        return next((r.get(key) for r in rows["refresh"] if r.get("generation") == int(index)), None)
    return None
