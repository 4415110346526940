"""Multiple choice: question, choices, and which of them is right."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from npd_ascend.tasks.registry import task


@task("choice", "question", "choices", "answer", reward="choice")
def choice(row: Mapping[str, Any]) -> tuple[str, str]:
    """The question with lettered choices; ``answer`` is a letter, or a number from 0."""
    texts = list(row["choices"])
    letters, answer = ascii_uppercase[: len(texts)], row["answer"]
    right = letters[answer] if isinstance(answer, int) else str(answer).strip().upper()
    if not right or right not in letters:
        raise ValueError(f"answer {answer!r} is none of {len(texts)} choices")
    lines = [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)]
    return "\n".join((str(row["question"]), *lines, "Answer with the letter of the right choice.")), right
