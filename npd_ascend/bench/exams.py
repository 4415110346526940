"""Examinations in four choices over many subjects: MMLU, CMMLU and C-Eval ask alike.

Prompts are those of lm-eval's tasks of these names (0.4.13): a heading that names the subject, the first five questions
of the subject's ``dev`` file with their answers, the question; the choices are the letters.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from npd_ascend.bench.registry import Chosen
from npd_ascend.bench.rows import Row, comma_separated, files_in
from npd_ascend.errors import UserError

_LETTERS = "ABCD"


class Exam(Chosen):
    """Base of the three.

    Attributes:
        columns: of the files; empty where they have a heading.
        asks, marks: columns of the question and of the answer.
        split: which files are asked.
        suffixes: of the files of ``dev`` and of ``split``, behind the subject.
        cue: last line of a question.
        space: whether a space comes before the letter.
    """

    shots: ClassVar[int] = 5
    columns: ClassVar[tuple[str, ...]] = ()
    asks: ClassVar[str]
    marks: ClassVar[str]
    split: ClassVar[str] = "test"
    suffixes: ClassVar[tuple[str, str]] = (".csv", ".csv")
    cue: ClassVar[str]

    @abstractmethod
    def heading(self, subject: str) -> str:
        """What stands above the examples."""

    def rows(self, folder: Path) -> list[Row]:
        (source,) = self.sources
        root, out = source.find(folder, self.name), []
        for path in files_in(root / self.split, self.suffixes[1]):
            subject = path.name.removesuffix(self.suffixes[1])
            before = self._examples(root / "dev" / f"{subject}{self.suffixes[0]}", subject)
            for row in comma_separated(path, self.columns):
                self.right(row)
                out.append(Row(row.where, {**row.fields, "subject": subject, "before": before}))
        return out

    def asked(self, row: Row) -> str:
        return row.text("before") + self._question(row)

    def choices(self, row: Row) -> list[str]:
        return [f" {letter}" for letter in _LETTERS]

    def right(self, row: Row) -> int:
        return row.letter(self.marks, _LETTERS)

    def _examples(self, path: Path, subject: str) -> str:
        shots = comma_separated(path, self.columns)[: self.shots]
        if len(shots) < self.shots:
            raise UserError(f"{path}: {len(shots)} examples, but benchmark {self.name} shows {self.shots}")
        solved = [f"{self._question(row)} {_LETTERS[self.right(row)]}\n\n" for row in shots]
        return f"{self.heading(subject)}\n\n{''.join(solved)}"

    def _question(self, row: Row) -> str:
        lines = [f"{letter}. {row.text(letter)}" for letter in _LETTERS]
        return "\n".join((row.text(self.asks).strip(), *lines, self.cue))
