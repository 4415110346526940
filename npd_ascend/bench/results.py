"""Scores as they are stored: ``<benchmark>.json``, and ``<benchmark>.samples.jsonl.gz`` with every answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.evaluate.interval import bootstrap, wilson
from npd_ascend.store.atomic import read_sealed, write_bytes, write_sealed


@dataclass(frozen=True)
class Sample:
    """One row.

    Attributes:
        row: file and line.
        prompt: as the model read it.
        given: its answers; of choices, (log-prob in nats, whether greedy) of each.
        score: 0 to 1, the mean over answers.
    """

    row: str
    prompt: str
    given: list[Any]
    score: float


@dataclass(frozen=True)
class Result:
    """Score of a checkpoint on a benchmark.

    Attributes:
        benchmark, title: its names.
        checkpoint, checkpoint_id: folder, and hash of its content.
        fingerprint: of all that the score depends on.
        settings: shots, chat template, lengths, sampling, limit, hashes of the data as they are and as published.
        rows, published_rows: of the files that were read, and of the published set.
        truncated: share of answers cut at the longest.
        mean_tokens: of an answer.
        cut_prompts: prompts that were longer than the model holds and lost their beginning.
        versions: of lm-eval, vLLM and transformers.
        seconds, asked, tokens: what was spent; answers known from before are not asked again.
        n: rows scored.
        score: mean, 0 to 1.
        interval: 95 %; Wilson's where every row is right or wrong, else bootstrap over rows.
    """

    benchmark: str
    title: str
    checkpoint: str
    checkpoint_id: str
    fingerprint: str
    settings: dict[str, Any]
    rows: int
    published_rows: int
    truncated: float
    mean_tokens: float
    cut_prompts: int
    versions: dict[str, str]
    seconds: float
    asked: int
    tokens: int
    n: int
    score: float
    interval: tuple[float, float]

    @staticmethod
    def summary(samples: Sequence[Sample]) -> dict[str, Any]:
        """The fields that follow from the rows' scores."""
        scores = np.array([s.score for s in samples])
        whole = bool(np.isin(scores, (0.0, 1.0)).all())
        interval = wilson(int(scores.sum()), len(scores)) if whole else bootstrap(scores)
        return {"n": len(scores), "score": float(scores.mean()), "interval": interval}

    @property
    def marks(self) -> list[str]:
        """In what this is another measurement than that of the published set."""
        data, published = self.settings["data"], self.settings["published_data"]
        other = [path for path, seen in data.items() if published[path] and seen != published[path]]
        usual, most = (self.settings.get(f"{which}max_new_tokens") for which in ("usual_", ""))
        unknown = [path for path in data if not published[path]]
        return [
            *([f"{self.n} of {self.rows} rows"] if self.n < self.rows else []),
            *([f"{self.rows} rows, {self.published_rows} are published"] if self.rows != self.published_rows else []),
            *([f"other data than published ({', '.join(other)})"] if other else []),
            *([f"data whose published hash is not known ({', '.join(unknown)})"] if unknown else []),
            *([f"answers of at most {most} tokens, usual are {usual}"] if usual else []),
            *([f"{self.cut_prompts} prompts were cut"] if self.cut_prompts else []),
        ]


def write_result(folder: Path, result: Result, samples: Sequence[Sample]) -> None:
    """Stores a score and its answers; the score last, so that where it is its answers are as well."""
    lines = "".join(json.dumps(asdict(s), ensure_ascii=False) + "\n" for s in samples)
    write_bytes(folder / f"{result.benchmark}.samples.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
    write_sealed(folder / f"{result.benchmark}.json", asdict(result))


def read_result(folder: Path, benchmark: str) -> Result | None:
    """A stored score; None where there is none, or a damaged one."""
    return _result(read_sealed(folder / f"{benchmark}.json"))


def read_samples(folder: Path, benchmark: str) -> Iterator[Sample]:
    """The answers of a stored score."""
    with gzip.open(folder / f"{benchmark}.samples.jsonl.gz", "rt", encoding="utf-8") as f:
        for line in f:
            yield Sample(**json.loads(line))


def read_folder(folder: Path) -> list[Result]:
    """All scores in a folder and those below it."""
    found = (_result(read_sealed(path)) for path in sorted(folder.rglob("*.json")) if path.is_file())
    return [result for result in found if result]


def _result(value: dict[str, Any] | None) -> Result | None:
    try:
        result = Result(**(value or {}))
    except TypeError:
        return None
    low, high = result.interval
    return Result(**{**asdict(result), "interval": (low, high)})
