"""GPQA-Diamond: questions of science for experts (Rein et al., arXiv:2311.12022)."""

import random
from pathlib import Path

from npd_ascend.bench.registry import Answered, Source, register
from npd_ascend.bench.rows import Row, comma_separated

_WRONG = [f"Incorrect Answer {i}" for i in (1, 2, 3)]


@register("gpqa")
class GPQA(Answered):
    """Zero shots; the mean over four samples. The order of the choices is drawn for each row from its number alone."""

    title = "GPQA"
    metric = "the same letter"
    sources = (
        Source(
            "gpqa/gpqa_diamond.csv",
            "dataset.zip of github.com/idavidrein/gpqa",
            "CC BY 4.0; the authors ask not to publish it as plain text",
        ),
    )
    count = 198
    proven = False
    task = "choice"
    max_new_tokens = 8192
    samples, temperature, top_p = 4, 0.6, 0.95

    def rows(self, folder: Path) -> list[Row]:
        (source,) = self.sources
        return [_shuffled(number, row) for number, row in enumerate(comma_separated(source.find(folder, self.name)))]


def _shuffled(number: int, row: Row) -> Row:
    right = row.text("Correct Answer").strip()
    choices = [right, *(row.text(name).strip() for name in _WRONG)]
    random.Random(number).shuffle(choices)
    fields = {"question": row.text("Question").strip(), "choices": choices, "answer": choices.index(right)}
    return Row(row.where, fields)
