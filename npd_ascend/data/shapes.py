"""Which field of a row is what, by the names that the data sets in use have given them (``docs/data.md``)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from npd_ascend.config.schema import DataConfig

_UNNAMED = DataConfig.model_fields["prompt_field"].default

CONVERSATIONS = ("messages", "conversations", "conversation")
TASKS = ("instruction", "question", "problem", "query", "input", "inputs")
CONTEXTS = {"instruction": ("input", "context")}
"""What a task is about, below it in the prompt."""
REFERENCES = (
    "completion",
    "response",
    "output",
    "solution",
    "chosen",
    "target",
    "targets",
    "canonical_solution",
    "answer",
)
SYSTEM, TOOLS, INSTANCES = "system", "tools", "instances"


@dataclass(frozen=True)
class Shape:
    """Names of a row's fields.

    Attributes:
        prompt: the user's turn or the conversation.
        context: follows it in the same turn; None: nothing does.
        reference: the reference answer; None: no field of its own has it.
        found: whether the prompt's field was found by its name, not named by the configuration or called ``prompt``.
    """

    prompt: str
    context: str | None
    reference: str | None
    found: bool


def shape_of(fields: Collection[str], settings: DataConfig) -> Shape:
    """The shape of a row that has these fields.

    What the configuration names goes first; then a field called ``prompt``, a conversation, a task, each in the order
    above. A field that the configuration names is never mistaken for another.
    """
    prompt, found = settings.prompt_field, False
    if prompt not in fields and prompt == _UNNAMED:
        known = next((n for n in (*CONVERSATIONS, *TASKS) if n in fields and n not in _named(settings)), None)
        prompt, found = known or prompt, known is not None
    context = next((n for n in CONTEXTS.get(prompt, ()) if n in fields), None) if found else None
    reference = settings.response_field
    if reference is None:
        taken = {prompt, context, settings.labels_field}
        reference = next((n for n in REFERENCES if n in fields and n not in taken), None)
    return Shape(prompt, context, reference, found)


def columns(names: Collection[str], settings: DataConfig, need_reference: bool) -> list[str]:
    """The columns of a table that some row may need, whatever is null in it."""
    if settings.task is not None:  # it knows what it reads
        return list(names)
    named = [settings.prompt_field, *_named(settings), TOOLS]
    if settings.prompt_field not in names and settings.prompt_field == _UNNAMED:
        named += [*CONVERSATIONS, *TASKS, *(n for of in CONTEXTS.values() for n in of), SYSTEM, INSTANCES]
    if settings.response_field is None and need_reference:
        named += REFERENCES
    return [n for n in dict.fromkeys(named) if n in names]


def _named(settings: DataConfig) -> list[str]:
    return [n for n in (settings.response_field, settings.labels_field, settings.answer_field) if n is not None]
