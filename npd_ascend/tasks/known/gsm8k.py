"""GSM8K: word problems with a number at the end (arXiv:2110.14168)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npd_ascend.tasks.registry import task


@task("gsm8k", "question", "answer", reward="number")
def gsm8k(row: Mapping[str, Any]) -> tuple[str, str]:
    """The question; the solution, whose number stands behind ``####``."""
    asked = f"{row['question']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    return asked, row["answer"]
