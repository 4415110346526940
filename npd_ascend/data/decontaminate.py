"""``npd decontaminate``: training prompts that share a run of words with a benchmark (GPT-3, arXiv:2005.14165, app. C).

Benchmarks become sorted arrays of 64-bit hashes, eight bytes a run of words; prompts are streamed past them.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.data import texts
from npd_ascend.data.sources import kind_of
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import atomic_file

NGRAM = 13
SHORTEST = 5
"""Texts of fewer words than an n-gram count as a whole; of fewer than these, not at all."""
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff_]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_EXPECTED = ".jsonl, .json, .csv, .txt, plain or gzipped"
Rows = Iterator[tuple[str, list[str], dict[str, Any]]]
_SHOWN = 20


@dataclass
class Benchmark:
    """What prompts are compared with.

    Attributes:
        name: as in the report: folder and file, without what comes before.
        grams: sorted hashes, uint64.
        texts: texts that were read.
        rows: rows of the prompts that share a run of words with it.
    """

    name: str
    grams: Array
    texts: int
    rows: int = 0


@dataclass
class Overlap:
    """What ``decontaminate`` found.

    Attributes:
        rows, texts: of the prompts.
        overlapping: rows that share a run of words with any benchmark.
        examples: (file and line, benchmark, the words) of the first ones.
    """

    n: int
    names: list[str]
    benchmarks: list[Benchmark]
    rows: int = 0
    texts: int = 0
    overlapping: int = 0
    examples: list[tuple[str, str, str]] = field(default_factory=list)

    def markdown(self) -> str:
        """The report."""
        lines = [
            f"{self.n}-gram overlap of {', '.join(self.names)}: {self.rows:,} rows, {self.texts:,} texts, "
            f"**{self.overlapping:,} rows overlap**.",
            "",
            "| benchmark | texts | runs of words | rows that overlap |",
            "|---|---:|---:|---:|",
            *(f"| {b.name} | {b.texts:,} | {len(b.grams):,} | {b.rows:,} |" for b in self.benchmarks),
        ]
        if self.examples:
            lines += [
                "",
                "| row | benchmark | words |",
                "|---|---|---|",
                *(f"| {where} | {name} | {words} |" for where, name, words in self.examples),
            ]
        return "\n".join(lines) + "\n"


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation; each Chinese or Japanese character is a word."""
    return _WORD.findall(text.lower())


def runs(words: Sequence[str], n: int) -> Array:
    """Hashes of all runs of ``n`` words, uint64; of a shorter text, of all its words."""
    if len(words) < min(n, SHORTEST):
        return np.empty(0, np.uint64)
    n = min(n, len(words))
    hashes = np.array([_hash(word) for word in words], np.uint64)
    out = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):  # a polynomial modulo 2^64
        out = out * _FACTOR + hashes[i : i + len(out)]
    return out


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def decontaminate(prompts: Sequence[Path], against: Sequence[Path], out: Path | None = None, n: int = NGRAM) -> Overlap:
    """Finds rows of prompt files that share a run of words with benchmark files.

    All texts of a row are looked at, whatever its fields are called; each by itself.

    Args:
        prompts: JSON lines or arrays, plain or compressed.
        against: benchmark files (JSON, CSV, text; plain or gzipped), or folders of them.
        out: is given the rows that share nothing, as JSON lines.
        n: words of a run.

    Raises:
        UserError: a file is missing, unreadable or of an unknown kind.
    """
    for path in prompts:
        if _kind(path, refuse=False) != "json":
            raise UserError(f"prompt file {path}: expected JSON lines or a JSON array (.jsonl, .json, .gz, .zst)")
    found = Overlap(n, [_name(p) for p in prompts], [_benchmark(path, n) for path in against])
    with ExitStack() as stack:
        keep: IO[bytes] | None = stack.enter_context(atomic_file(out)) if out else None
        for path in prompts:
            for where, row, record in _rows(path):
                if not _compare(found, f"{_name(path)}, {where}", row) and keep:
                    keep.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    return found


def _compare(found: Overlap, where: str, row: list[str]) -> bool:
    """Counts a row; says whether it shares anything."""
    found.rows += 1
    found.texts += len(row)
    hit: set[int] = set()
    for text in row:
        words = words_of(text)
        grams = runs(words, found.n)
        for i, benchmark in enumerate(found.benchmarks):
            shared = np.flatnonzero(_isin(grams, benchmark.grams))
            if not len(shared) or i in hit:
                continue
            hit.add(i)
            benchmark.rows += 1
            if len(found.examples) < _SHOWN:
                found.examples.append((where, benchmark.name, " ".join(words[shared[0] : shared[0] + found.n])))
    found.overlapping += bool(hit)
    return bool(hit)


def _isin(values: Array, ordered: Array) -> Array:
    if not len(ordered):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.equal(ordered[place], values)


def _benchmark(path: Path, n: int) -> Benchmark:
    files = _files(path)
    grams, count = [np.empty(0, np.uint64)], 0
    for file in files:
        for _, row, _ in _rows(file):
            count += len(row)
            grams += [runs(words_of(text), n) for text in row]
    return Benchmark(_name(path), np.unique(np.concatenate(grams)), count)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p, refuse=False))
    if not files:
        raise UserError(f"{path}: no benchmark files in this folder; expected {_EXPECTED}")
    return files


def _name(path: Path) -> str:
    path = path.absolute()
    return f"{path.parent.name}/{path.name}"


def _kind(path: Path, refuse: bool = True) -> str | None:
    kind = "txt" if path.name.lower().removesuffix(".gz").endswith(".txt") else kind_of(path)
    if kind in ("json", "csv", "txt"):
        return kind
    if refuse:
        raise UserError(f"{path}: unknown kind of file; expected {_EXPECTED}")
    return None


def _rows(path: Path) -> Rows:
    """(place in the file, texts, the row itself)."""
    if _kind(path) == "json":
        for where, record in texts.json_rows(path):
            yield where.removeprefix(f"{path}, "), list(_strings(record)), record
        return
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as f:
            lines = (line.decode("utf-8-sig" if i == 0 else "utf-8") for i, line in enumerate(f))
            # Tables of benchmarks often have no names in their first row, so it counts like any other.
            rows = csv.reader(lines) if _kind(path) == "csv" else ([line.strip()] for line in lines if line.strip())
            for number, row in enumerate(rows, 1):
                yield f"row {number}", row, {}
    except (OSError, EOFError, ValueError, csv.Error) as e:
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from None


def _strings(value: Any) -> Iterator[str]:
    """All texts within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
