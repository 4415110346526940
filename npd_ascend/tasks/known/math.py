"""MATH and sets in its shape: problem and solution with a box (arXiv:2103.03874)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npd_ascend.tasks.registry import task


@task("math", "problem", reward="math")
def math(row: Mapping[str, Any]) -> tuple[str, str]:
    """The problem; ``answer`` where the row has it, else ``solution``, of which the last box counts."""
    right = row.get("answer") if row.get("answer") is not None else row["solution"]
    asked = f"{row['problem']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    return asked, str(right)
