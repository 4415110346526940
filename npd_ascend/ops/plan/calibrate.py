"""Rates measured on a finished run, or in a node report, to predict a run on the same machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.progress import ProgressTail
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

REPORT = "node_report.json"
"""Name of a node report in its folder."""


@dataclass(frozen=True)
class Rate:
    """How a stage went: a pass takes its start, and a time for every token.

    Attributes:
        start: seconds of the first pass that do not grow with the work: interpreters, weights, compilation, clean-up.
        again: the same of later passes; rollout engines stay up.
        per_token: seconds a token of its meter.
    """

    start: float
    again: float
    per_token: float


class Calibration:
    """Rates by stage.

    Args:
        rates: by stage name as in metrics.jsonl.
        host: seconds of the stages that run on the host alone: once (prepare), and in each generation (select, pack).
    """

    def __init__(self, rates: dict[str, Rate], host: tuple[float, float] = (0.0, 0.0)):
        self.rates, self._host = rates, host

    def host(self, generations: int) -> float:
        """Seconds of prepare, select and pack, which hardly grow with the work."""
        return self._host[0] + generations * self._host[1]

    def start(self, stage: str, passes: int) -> float:
        """Seconds of ``passes`` passes that do not grow with the work."""
        rate = self.rates.get(stage)
        return rate.start + (passes - 1) * rate.again if rate else 0.0

    def seconds(self, stage: str, tokens: float, passes: int = 1) -> float | None:
        """Wall seconds of ``passes`` passes that process ``tokens`` tokens together; None: never measured."""
        rate = self.rates.get(stage)
        return None if rate is None else self.start(stage, passes) + tokens * rate.per_token

    @classmethod
    def from_run(cls, folder: Path) -> Calibration:
        """Of a run directory: its metrics.jsonl and, where it is still there, logs/progress.jsonl; or of the folder of
        a node report.

        Raises:
            UserError: no stage of that run has ended, or nothing of that report was measured.
        """
        if (folder / REPORT).exists():
            return cls.from_report(folder / REPORT)
        run = RunDir(folder)
        found = cls.from_rows(read_metrics(run.metrics), ProgressTail(run.logs / "progress.jsonl").poll())
        if not found.rates:
            raise UserError(
                f"--calibrate {folder}: no finished stage in its metrics.jsonl; give the directory of a "
                "run that has ended"
            )
        return found

    @classmethod
    def from_report(cls, path: Path) -> Calibration:
        """Of a node report: each stage at its largest size, for as many workers as the report's configuration has.

        Raises:
            UserError: no report, or none of its measurements of stages was taken.
        """
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            rates = _of_report(report["parts"], report["layout"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"--calibrate {path}: not a node report ({type(e).__name__}: {e})") from None
        if not rates:
            raise UserError(
                f"--calibrate {path}: neither decoding nor annotation nor training was measured; "
                "npd doctor CONFIG --node-report goes on with what failed"
            )
        return cls(rates)

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]], events: Iterable[dict[str, Any]] = ()) -> Calibration:
        """Of recorded rows.

        A stage's time a token is taken where it is steady: for training from its steps without the first (which
        compiles), for others from the slope of its progress, else from ``busy``. What is left of its wall time is its
        start. Passes that did nothing, or failed, do not count.

        Args:
            rows: of metrics.jsonl; kinds ``stage`` and ``train`` are looked at.
            events: of the progress file.
        """
        slopes = _slopes(list(events))
        slopes |= {"train": steady} if (steady := _training(rows)) else {}
        slopes |= {"evaluate": slopes["rollout"]} if "rollout" in slopes else {}  # answers, from the same engine
        stages: dict[str, list[dict[str, Any]]] = {}
        for row in _evaluations_merged(rows):
            if row["kind"] == "stage" and row.get("tokens") and row.get("seconds"):
                stages.setdefault(row["stage"], []).append(row)
        rates = {}
        for stage, passes in stages.items():
            tokens, wall = sum(r["tokens"] for r in passes), sum(r["seconds"] for r in passes)
            # A slope that explains more than all of the time was taken at a slow moment.
            per_token = min(slopes.get(stage) or sum(r["busy"] for r in passes) / tokens, wall / tokens)
            first, *later = (max(0.0, r["seconds"] - r["tokens"] * per_token) for r in passes)
            rates[stage] = Rate(first, sum(later) / len(later) if later else first, per_token)
        host = {
            s: [r["seconds"] for r in rows if r["kind"] == "stage" and r.get("stage") == s and r.get("seconds")]
            for s in ("prepare", "select", "pack")
        }
        return cls(
            {s: r for s, r in rates.items() if s not in host},
            (sum(host["prepare"]), sum(sum(v) / len(v) for s, v in host.items() if s != "prepare" and v)),
        )


def _of_report(parts: dict[str, Any], layout: dict[str, Any]) -> dict[str, Rate]:
    """Rates of the stages whose measurement went well."""
    measured = [line for part in parts.values() for line in part.get("lines", []) if "error" not in line]
    rates = {}
    for stage in ("annotate teacher", "annotate student", "train"):
        if lines := [line for line in measured if line.get("stage") == stage]:
            best = max(lines, key=lambda line: line["row_length"])
            workers = layout.get(stage.replace(" ", "_"), 1)  # the ranks of training were measured together
            rates[stage.replace(" ", "_")] = Rate(best["start"], best["start"], 1 / best["tokens_per_second"] / workers)
    if lines := [line for line in measured if "sequences" in line]:
        best = max(lines, key=lambda line: line["sequences"])
        start = next((line["seconds"] for line in measured if line["name"] == "engine start"), 0.0)
        again = next((line["to_seconds"] for line in measured if "to_seconds" in line), start)
        rate = Rate(start, again if layout["keep_alive"] else start, 1 / best["tokens_per_second"] / layout["rollout"])
        rates |= {"rollout": rate, "evaluate": Rate(0.0, 0.0, rate.per_token)}
    return rates


def _evaluations_merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An evaluation books its answers and its check as two passes over the same tokens: here they are one."""
    out: list[dict[str, Any]] = []
    for row in rows:
        last = out[-1] if out else {}
        if row.get("stage") == last.get("stage") == "evaluate" and row.get("generation") == last.get("generation"):
            out[-1] = {**last, "seconds": last.get("seconds", 0) + row.get("seconds", 0)}
        else:
            out.append(row)
    return out


def _training(rows: list[dict[str, Any]]) -> float | None:
    """Seconds a row token of the steady steps, lag and checkpoints between them included; None: too few.

    A step's row says its response tokens and its stage row the tokens of the whole rows, so the two are scaled.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "train":
            steps.setdefault(row["generation"], []).append(row)
    steady = [r for of in steps.values() for r in of[1:]]
    response = sum(r["tokens"] for of in steps.values() for r in of)
    total = sum(r["tokens"] for r in rows if r["kind"] == "stage" and r.get("stage") == "train")
    counted = sum(r["tokens"] for r in steady)
    if len(steady) < 3 or not counted or not total:
        return None
    return float(sum(r["seconds"] for r in steady) / (counted * total / response))


def _slopes(events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds a token between the first and the last sign of progress, by stage; the longest series of each."""
    series: dict[str, list[list[dict[str, Any]]]] = {}
    for event in events:
        name = str(event.get("stage")).replace(" ", "_")
        if event.get("event") == "begin":
            series.setdefault(name, []).append([])
        elif event.get("event") in ("progress", "end") and event.get("tokens"):
            series.setdefault(name, [[]])[-1].append(event)
    out = {}
    for stage, runs in series.items():
        best = max(runs, key=len)
        if len(best) >= 3 and best[-1]["tokens"] > best[0]["tokens"]:
            first, last = best[0], best[-1]
            out[stage] = (last["seconds"] - first["seconds"]) / (last["tokens"] - first["tokens"])
    return out
