"""Benchmarks by name: where their rows come from, what is asked, and how an answer is scored.

A benchmark is one class in one file of ``benchmarks/``. There are two kinds: ``Answered`` has the model write an
answer, which a reward of ``npd_ascend.tasks`` judges; ``Chosen`` takes the likeliest of given choices. Everything that
moves a score is pinned here: rows, prompt, examples, length of an answer, sampling. Its name in a table is ``title``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from npd_ascend.bench.rows import Row, digest_of, one_line_each
from npd_ascend.errors import UserError
from npd_ascend.registry import Registry
from npd_ascend.tasks.registry import REWARDS, TASKS, Attempt


@dataclass(frozen=True)
class Source:
    """A file, or a folder of files, that a benchmark reads.

    Attributes:
        path: below the data folder.
        origin: who publishes it.
        licence: under which licence.
        sha256: of the published file; of a folder: of the lines ``hash  path`` of its files. Empty: not known, because
            the benchmark has never run on the real file.
        pattern: of the files that count in a folder.
    """

    path: str
    origin: str
    licence: str
    sha256: str = ""
    pattern: str = "**/*"

    def find(self, folder: Path, name: str) -> Path:
        """Where it is.

        Raises:
            UserError: it is missing.
        """
        path = folder / self.path
        if not path.exists():
            raise UserError(
                f"benchmark {name}: {path} is missing; it comes from {self.origin} (licence: {self.licence}), and "
                f"--data names the folder above {self.path}"
            )
        return path

    def digest(self, folder: Path) -> str:
        """SHA-256 as in ``sha256``, of what is there."""
        return digest_of(folder / self.path, self.pattern)


class Benchmark(ABC):
    """Base of both kinds.

    Attributes:
        title: heading in tables.
        sources: what it reads.
        count: rows of the published set.
        metric: what a score is, for people.
        shots: examples before the question.
        chat: whether the question is a user's turn of the chat template.
        proven: whether it has run on the published rows; if not, on synthetic rows of their form only.
    """

    title: ClassVar[str]
    sources: ClassVar[tuple[Source, ...]]
    count: ClassVar[int]
    metric: ClassVar[str]
    shots: ClassVar[int] = 0
    chat: ClassVar[bool]
    proven: ClassVar[bool] = True
    name: str = ""

    def rows(self, folder: Path) -> list[Row]:
        """All rows in the published order.

        Raises:
            UserError: a file is missing, or has rows of another form.
        """
        (source,) = self.sources
        return list(one_line_each(source.find(folder, self.name)))

    @abstractmethod
    def asked(self, row: Row) -> str:
        """Text of the question, examples included.

        Raises:
            UserError: the row has another form.
        """

    def check(self) -> None:  # noqa: B027  (likelihoods need nothing)
        """Whether this machine has what scoring needs.

        Raises:
            UserError: it lacks something.
        """

    def settings(self) -> dict[str, Any]:
        """What moves the score, beside the rows; goes into the result and its fingerprint."""
        return {"shots": self.shots, "chat": self.chat, "metric": self.metric}


class Answered(Benchmark):
    """The model writes an answer.

    Attributes:
        task: of ``npd_ascend.tasks``, which says what is asked and what is right.
        options: of the task's reward.
        max_new_tokens: most tokens of an answer.
        stop: texts that end an answer.
        samples: answers a row, whose mean counts (Avg@n); with a temperature of 0 one.
        temperature, top_p: of sampled answers.
    """

    chat: ClassVar[bool] = True
    task: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    max_new_tokens: ClassVar[int] = 1024
    stop: ClassVar[tuple[str, ...]] = ()
    samples: ClassVar[int] = 1
    temperature: ClassVar[float] = 0.0
    top_p: ClassVar[float] = 1.0

    def question(self, row: Row) -> tuple[str, str]:
        """What is asked, and what is right."""
        return TASKS.find(self.task).of(row.fields, row.where)

    def asked(self, row: Row) -> str:
        return self.question(row)[0]

    def score(self, row: Row, answer: str) -> float:
        """0 to 1: how good an answer is; it never raises for an answer, however odd."""
        asked, right = self.question(row)
        reward = REWARDS.find(TASKS.find(self.task).reward)
        return reward.with_options(self.options, f"benchmark {self.name}")(Attempt(asked, answer, right), None)

    def check(self) -> None:
        REWARDS.find(TASKS.find(self.task).reward).check()

    def settings(self) -> dict[str, Any]:
        sampled = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature else {}
        bounds = {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop), "samples": self.samples}
        return {**super().settings(), **bounds, **sampled}


class Chosen(Benchmark):
    """The likeliest of given choices is the model's answer: sums of log-probs are compared, as in lm-eval's ``acc``."""

    metric: ClassVar[str] = "accuracy"
    chat: ClassVar[bool] = False

    @abstractmethod
    def choices(self, row: Row) -> list[str]:
        """Texts whose log-probs behind the question are compared, with the space before them."""

    @abstractmethod
    def right(self, row: Row) -> int:
        """Number of the right one."""


BENCHMARKS: Registry[type[Benchmark]] = Registry("benchmark", "--tasks", "npd_ascend.bench.benchmarks")
_B = TypeVar("_B", bound=type[Benchmark])


def register(name: str) -> Callable[[_B], _B]:
    """Decorator that makes a class the benchmark of its file."""

    def enter(benchmark: _B) -> _B:
        benchmark.name = name
        BENCHMARKS.enter(benchmark, name, benchmark)
        return benchmark

    return enter


def find(names: Sequence[str]) -> list[Benchmark]:
    """Benchmarks of these names, each once.

    Raises:
        UserError: there is no such benchmark, or none is named.
    """
    if not names:
        raise UserError(f"--tasks names no benchmark; known: {', '.join(BENCHMARKS.known())}")
    return [BENCHMARKS.find(name)() for name in dict.fromkeys(names)]
