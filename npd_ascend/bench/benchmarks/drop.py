"""DROP: questions that count, sort and add over a passage (Dua et al., arXiv:1903.00161)."""

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.bench.registry import Answered, Source, register
from npd_ascend.bench.rows import Row, whole_json
from npd_ascend.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SAID = re.compile(r"answer(?: is)?\s*:?\s*(.+)", re.IGNORECASE)


@register("drop")
class DROP(Answered):
    """F1 of the words, of the best of the annotators' answers; zero shots, development set."""

    title = "DROP"
    metric = "F1"
    sources = (Source("drop/drop_dataset_dev.json", "drop_dataset.zip of allenai.org/data/drop", "CC BY-SA 4.0"),)
    count = 9536
    proven = False
    max_new_tokens = 512

    def rows(self, folder: Path) -> list[Row]:
        (source,) = self.sources
        path = source.find(folder, self.name)
        found: Any = whole_json(path)
        try:
            return [
                Row(
                    f"{path}: {qa['query_id']}",
                    {"passage": p["passage"], "question": qa["question"], "golds": _golds(qa)},
                )
                for p in found.values()
                for qa in p["qa_pairs"]
            ]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: expected passages with qa_pairs, each with question and answer") from None

    def question(self, row: Row) -> tuple[str, str]:
        asked = f"{row.text('passage')}\n\nQuestion: {row.text('question')}\nEnd with a line 'Answer: ' and the answer."
        return asked, ""

    def score(self, row: Row, answer: str) -> float:
        """The best F1 of the last text behind "Answer:", or of the last line."""
        said, lines = _SAID.findall(answer), answer.strip().splitlines()
        given = said[-1] if said else lines[-1] if lines else ""
        return max(_f1(_bags([given]), _bags(gold)) for gold in row.fields["golds"])

    def check(self) -> None:
        pass


def _golds(qa: dict[str, Any]) -> list[list[str]]:
    return [_spans(a) for a in (qa["answer"], *qa.get("validated_answers", ()))]


def _spans(answer: dict[str, Any]) -> list[str]:
    if answer["number"]:
        return [str(answer["number"])]
    if answer["spans"]:
        return [str(s) for s in answer["spans"]]
    return [" ".join(answer["date"][part] for part in ("day", "month", "year")).strip()]


def _bags(spans: Sequence[str]) -> list[set[str]]:
    return [{w for token in re.split("[ -]", span.lower()) if (w := _plain(token))} for span in spans]


def _plain(token: str) -> str:
    if not _number(token):
        token = "".join(c for c in token if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", str(float(token)) if _number(token) else token).split())


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _f1(given: list[set[str]], gold: list[set[str]]) -> float:
    """Mean over spans, matched so that the sum is largest; rounded to two digits, as the authors' program does.

    With one given span the best match is simply the best one.
    """
    (one,) = given
    best = max((_overlap(one, other) for other in gold), default=0.0)
    return round(float(np.mean([best, *[0.0] * (len(gold) - 1)])), 2)


def _overlap(given: set[str], gold: set[str]) -> float:
    numbers = {w for w in gold if _number(w)}
    common = len(given & gold)
    if (numbers and not numbers & given) or not common:
        return float(given == gold)
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)
