"""Prompt files as a stream of checked rows, in whatever shape they come.

Memory stays flat whatever the size of a file, and whatever is wrong with a row is said with file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from npd_ascend.config.schema import DataConfig
from npd_ascend.data import shapes, tables, texts
from npd_ascend.data.conversation import Messages, checked_text, read_messages, read_tools, split
from npd_ascend.data.sources import expand, kind_of
from npd_ascend.data.texts import type_name
from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import TASKS, Task


@dataclass
class PromptRow:
    """One row of a prompt file.

    Attributes:
        where: file and line, for error messages.
        messages: the conversation up to the answer, as role and content (see ``conversation.read_messages``).
        text: the user's turn.
        response: reference answer, or None.
        labels: label text, or None.
        answer: what the checker compares with, or None.
        turns: reference that is more than a text, in the place of ``response``: turns of the assistant with those of
            tools and users between them, or one that calls a tool; or None.
        tools: descriptions of the tools that the assistant may call, or None.
    """

    where: str
    messages: Messages
    text: str
    response: str | None
    labels: str | None
    answer: str | None
    turns: Messages | None = None
    tools: list[Any] | None = None


def read_prompts(
    files: Sequence[Path | str],
    settings: DataConfig,
    need_reference: bool = False,
    need_answer: bool = False,
    limit: int | None = None,
) -> Iterator[PromptRow]:
    """Rows of all files in order, checked.

    Args:
        files: see ``sources.expand``.
        settings: names of the fields, and the system turn.
        need_reference: a row without a reference answer is an error.
        need_answer: a row without an answer to compare with is an error.
        limit: stop after this many rows.

    Raises:
        UserError: a file that is missing, unreadable, empty or malformed; a row that lacks a field or has an
            empty or wrongly typed one.
    """
    count = 0
    for path in expand(files):
        rows = 0
        for where, record in _records(path, settings, need_reference):
            if limit is not None and count >= limit:
                return
            yield _Row(where, record, settings, need_reference, need_answer).checked()
            rows += 1
            count += 1
        if not rows and (limit is None or count < limit):
            raise UserError(f"{path}: there are no rows in it")


def measure(files: Sequence[Path | str], split: str = "train") -> tuple[int, int]:
    """(rows, bytes) of prompt files, without a look at what the rows say; blank lines count.

    Raises:
        UserError: as ``read_prompts``, of files.
    """
    rows = size = 0
    for path in expand(files, split):
        kind = kind_of(path)
        more, text = texts.count(path, kind) if kind in ("json", "csv") else tables.measure(path)
        rows, size = rows + more, size + text
    return rows, size


def _records(path: Path, settings: DataConfig, need_reference: bool) -> texts.Rows:
    kind = kind_of(path)
    if kind in ("json", "csv"):
        yield from texts.json_rows(path) if kind == "json" else texts.csv_rows(path)
        return
    wanted = partial(shapes.columns, settings=settings, need_reference=need_reference)
    for number, record in enumerate(tables.rows(path, wanted), 1):
        yield f"{path}, row {number}", record


class _Row:
    """A row that is being read."""

    def __init__(
        self, where: str, record: dict[str, Any], settings: DataConfig, need_reference: bool, need_answer: bool
    ):
        self.where, self.record, self.settings = where, record, settings
        self.need_reference, self.need_answer = need_reference, need_answer
        self.shape = shapes.shape_of({k for k, v in record.items() if v is not None and v is not ...}, settings)

    def checked(self) -> PromptRow:
        """What the row says.

        Raises:
            UserError: see ``read_prompts``.
        """
        if self.settings.task is not None:
            return self._of_task(TASKS.find(self.settings.task))
        value = self._field(self.shape.prompt, "prompt_field")
        if isinstance(value, str):
            prompt, own = [{"role": "user", "content": self._task(value)}], None
            tools = None
        else:
            prompt, own = self._conversation(value)
            tools = read_tools(self.where, self._get(shapes.TOOLS))
        reference = own or self._reference()
        prompt, text = self._finished(prompt)
        response, turns = self._answer_of(reference)
        labels = None
        if self.settings.labels_field is not None and reference:
            labels = self._text(self.settings.labels_field, "labels_field", required=False)
            if labels is not None and turns is not None:
                raise UserError(
                    f"{self.where}: labels go with an answer of one text, this one has {len(turns)} turns; "
                    "leave data.labels_field out"
                )
        return PromptRow(self.where, prompt, text, response, labels, self._checked_answer(), turns, tools)

    def _of_task(self, task: Task) -> PromptRow:
        asked, right = task.of(self.record, self.where)
        prompt, text = self._finished([{"role": "user", "content": self._string(task.name, asked)}])
        response, turns = self._answer_of(self._reference())
        return PromptRow(self.where, prompt, text, response, None, self._string(task.name, right), turns)

    # ---- the prompt

    def _task(self, text: str) -> str:
        """A task with what it is about."""
        text = self._string(self.shape.prompt, text)
        context = self._get(self.shape.context) if self.shape.context else self._instance().get("input")
        return "\n".join((text, self._string(self.shape.context or "input", context))) if context else text

    def _instance(self) -> dict[str, Any]:
        """Self-Instruct keeps input and output of a task in a list of instances, of which the first is taken."""
        instances = self._get(shapes.INSTANCES) if self.shape.found and self.shape.prompt == "instruction" else None
        first = instances[0] if isinstance(instances, list) and instances else None
        return first if isinstance(first, dict) else {}

    def _conversation(self, value: Any) -> tuple[Messages, Messages | None]:
        """Prompt and reference of a list of messages."""
        what = f"field {self.shape.prompt!r}"
        if self.settings.template == "raw":
            raise UserError(
                f"{self.where}: {what} is {type_name(value)}, but data.template is raw, which takes text "
                "only; set data.template: chat"
            )
        messages = read_messages(self.where, value, what)
        system = self._get(shapes.SYSTEM) if self.shape.found else None
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._string(shapes.SYSTEM, system)})
        if self.settings.response_field is not None:
            if messages[-1]["role"] == "assistant":
                raise UserError(
                    f"{self.where}: the conversation ends with the assistant's turn, but "
                    "data.response_field names another answer; end it with the user's turn, or leave "
                    "data.response_field out"
                )
            return messages, None
        # What the student answers itself is the last turn, whatever went before.
        prompt, reference = split(messages, self.settings.reference_turns if self.need_reference else "last")
        return prompt, reference or None

    def _finished(self, messages: Messages) -> tuple[Messages, str]:
        """The prompt with system turn and suffix, and the user's turn as it was."""
        if not messages or not any(m["role"] != "system" for m in messages):
            raise UserError(
                f"{self.where}: the conversation ends with the assistant's turn and nobody asks before it; "
                "begin it with the user's"
            )
        last = messages[-1]
        if not last["content"].strip() and last["role"] != "tool":
            raise UserError(f"{self.where}: the prompt is empty")
        if self.settings.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.settings.system})
        asked = next((m for m in reversed(messages) if m["role"] == "user"), last)
        text = asked["content"]
        asked["content"] += self.settings.suffix or ""
        return messages, text

    # ---- answers

    def _reference(self) -> Messages | None:
        """The reference of a field of its own, as turns; None: there is none, or nobody needs it."""
        name = self.shape.reference
        if self.settings.response_field is None and not self.need_reference:
            return None
        value = self._get(name) if name else self._instance().get("output")
        if value is None:
            return None
        if not isinstance(value, list) or not value or not isinstance(value[0], dict):
            return [{"role": "assistant", "content": self._string(name or "output", value)}]
        turns = read_messages(self.where, value, f"field {name!r}")
        if turns[-1]["role"] != "assistant":
            raise UserError(
                f"{self.where}: field {name!r} ends with the turn of {turns[-1]['role'][:40]!r}; end it "
                "with the assistant's"
            )
        return turns if turns[0]["role"] == "assistant" else turns[-1:]

    def _answer_of(self, reference: Messages | None) -> tuple[str | None, Messages | None]:
        """(text, None) or (None, turns) of a reference; refuses none where one is needed."""
        if reference and (len(reference) > 1 or reference[0].get("tool_calls")):
            if self.settings.template == "raw":
                raise UserError(
                    f"{self.where}: the answer has several turns or tool calls, but data.template is raw, "
                    "which takes text only; set data.template: chat"
                )
            return None, reference
        text = reference[0]["content"] if reference else None
        if text is not None and text.strip():
            return text, None
        if not self.need_reference:
            return None, None
        named = self.settings.response_field
        if text is not None:
            raise UserError(
                f"{self.where}: {named or 'the reference answer'!r} is empty; give an answer or leave the row out"
            )
        if named is not None:
            self._field(named, "response_field")
        raise UserError(
            f"{self.where}: no reference answer; the fields there are: {self._there()} (set "
            "data.response_field, or end the conversation with the assistant's turn)"
        )

    def _checked_answer(self) -> str | None:
        if self.settings.answer_field is not None:
            return self._text(self.settings.answer_field, "answer_field", self.need_answer, numbers=True)
        if self.need_answer:
            raise UserError("answers are needed to check against but data.answer_field is not set")
        return None

    # ---- fields

    def _get(self, name: str) -> Any:
        value = self.record.get(name)
        return None if value is ... else value

    def _field(self, name: str, setting: str) -> Any:
        if self.record.get(name) is None:
            raise UserError(
                f"{self.where}: no field {name!r}; the fields there are: {self._there()} (set data.{setting})"
            )
        return self.record[name]

    def _there(self) -> str:
        return (", ".join(repr(k) for k, v in self.record.items() if v is not None) or "none")[:200]

    def _text(self, name: str, setting: str, required: bool, numbers: bool = False) -> str | None:
        if self.record.get(name) is None and not required:
            return None
        value = self._field(name, setting)
        if numbers and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return self._string(name, value)

    def _string(self, name: str, value: Any) -> str:
        return checked_text(self.where, f"field {name!r}", value)
