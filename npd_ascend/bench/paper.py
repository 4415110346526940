"""Scores of the paper (arXiv:2605.05940), in per cent, to stand beside one's own.

Its harness, shots and prompts are not stated. What its figures fit: CLUEWSC is FewCLUE's public test set (976), MBPP
the sanitized set (257), MATH-500 after GRPO a mean over several samples, AIME over sixteen.
"""

from __future__ import annotations

from dataclasses import dataclass

ELEVEN = ("mmlu", "cmmlu", "ceval", "ifeval", "cluewsc", "gsm8k", "math500", "drop", "gpqa", "mbpp", "humaneval")
"""Benchmarks of the paper's AVG, in its order."""
_THINK = ("mmlu", "cmmlu", "ceval", "gsm8k", "math500", "mbpp", "humaneval", "gpqa", "drop", "cluewsc", "ifeval")
_LARGE = ("gpqa", "aime24", "aime25", "livecodebench")
_CODE = ("humaneval", "mbpp")


@dataclass(frozen=True)
class Column:
    """One row of a table of the paper.

    Attributes:
        table: its number.
        title: for people.
        scores: by benchmark; ``avg`` is the printed mean.
    """

    table: str
    title: str
    scores: dict[str, float]


def _column(table: str, title: str, names: tuple[str, ...], *values: float) -> Column:
    return Column(table, title, dict(zip((*names, "avg"), values, strict=True)))


COLUMNS = (
    _column("8", "SFT 1B", ELEVEN, 63.21, 53.10, 58.51, 56.38, 76.95, 70.89, 56.20, 28.73, 43.43, 52.53, 59.15, 56.28),
    _column(
        "8", "SupKD 1B", ELEVEN, 62.68, 53.97, 58.83, 59.70, 77.56, 72.10, 65.20, 30.24, 46.46, 57.20, 62.80, 58.79
    ),
    _column(
        "8", "SeqKD 1B", ELEVEN, 61.74, 54.94, 62.83, 59.89, 79.92, 74.30, 61.20, 36.59, 47.98, 55.25, 60.37, 59.55
    ),
    _column("8", "NPD 1B", ELEVEN, 66.44, 55.43, 66.73, 65.43, 80.94, 78.24, 72.60, 45.69, 50.51, 58.37, 67.68, 64.37),
    _column(
        "6", "SFT + GRPO 1B", ELEVEN, 63.43, 53.65, 57.15, 54.16, 77.05, 77.26, 72.00, 45.64, 43.94, 56.81, 57.32, 59.86
    ),
    _column(
        "6", "NPD + GRPO 1B", ELEVEN, 68.04, 56.53, 67.13, 60.81, 82.17, 87.60, 84.76, 69.18, 48.48, 61.87, 69.51, 68.73
    ),
    Column("7", "Qwen3-1.7B", {"avg": 63.69}),
    Column("7", "Qwen2.5-1.5B", {"avg": 55.10}),
    _column("15", "SFT 7B", _LARGE, 63.64, 25.21, 35.00, 29.41, 38.32),
    _column("15", "NPD 7B", _LARGE, 69.36, 32.08, 33.12, 32.35, 41.73),
    _column(
        "16", "SFT 1B-think", _THINK, 70.61, 57.61, 63.08, 78.32, 73.00, 60.70, 60.37, 46.46, 75.92, 79.92, 64.70, 66.43
    ),
    _column(
        "16", "NPD 1B-think", _THINK, 79.31, 62.81, 63.57, 88.10, 77.00, 78.99, 82.93, 49.49, 79.94, 84.43, 62.11, 73.52
    ),
    _column("17", "teacher 7B-coder", _CODE, 75.61, 74.60, 75.10),
    _column("17", "student 1.5B-coder", _CODE, 30.73, 60.84, 45.78),
    _column("17", "NPD 1.5B-coder", _CODE, 43.58, 63.01, 53.29),
)
