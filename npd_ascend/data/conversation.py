"""Conversations as people store them, as the messages that chat templates know."""

from __future__ import annotations

import json
from typing import Any

from npd_ascend.data.texts import type_name
from npd_ascend.errors import UserError

Messages = list[dict[str, Any]]

_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
"""Roles behind ``from``, as FastChat and LLaMA-Factory write them."""


def read_messages(where: str, value: Any, what: str) -> Messages:
    """Messages with ``role`` and ``content``, and what else a template reads of them: ``tool_calls`` with parsed
    arguments, ``tool_call_id``, a tool's ``name``.

    Args:
        where: file and row.
        value: messages with role and content (OpenAI), or with from and value (ShareGPT).
        what: the field, for errors.

    Raises:
        UserError: it is no such list.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {what} is {type_name(value)}, expected text or a list of chat messages")
    return [_message(where, number, message) for number, message in enumerate(value, 1)]


def read_tools(where: str, value: Any) -> list[Any] | None:
    """Descriptions of the tools that the assistant may call; None: there are none.

    Args:
        where: file and row.
        value: a list of JSON schemas or, as ShareGPT has it, its text.

    Raises:
        UserError: it is neither.
    """
    tools = value
    if isinstance(value, str):
        try:
            tools = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as e:
            raise UserError(
                f"{where}: field 'tools' is not valid JSON ({e}); give a list of tool descriptions"
            ) from None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise UserError(f"{where}: field 'tools' is {type_name(tools)}, expected a list of tool descriptions")
    return [_without_nulls(t) for t in tools]


def split(messages: Messages, turns: str) -> tuple[Messages, Messages]:
    """A conversation as (prompt, reference), the reference empty where there is none.

    Args:
        messages: the whole.
        turns: ``last``: the reference is the assistant's turn at the end. ``all``: from the assistant's first turn on
            to its last one, with the turns of users and tools between them. ``auto``: ``all`` where tools take part.
    """
    asked = next((i for i, m in enumerate(messages) if m["role"] == "user"), len(messages))
    own = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > asked]
    if own and (turns == "all" or (turns == "auto" and any(m["role"] == "tool" for m in messages[own[0] : own[-1]]))):
        return messages[: own[0]], messages[own[0] : own[-1] + 1]
    if messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1:]
    return messages, []


def checked_text(where: str, what: str, value: Any) -> str:
    """Text that can be written as UTF-8.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} is {type_name(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {what} has half of a surrogate pair, which is no character") from None
    return value


def _message(where: str, number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise UserError(f"{where}: message {number} has no role and content")
    if isinstance(message.get("from"), str) and "value" in message:
        return _sharegpt(where, number, message)
    role, calls = message.get("role"), message.get("tool_calls")
    if not isinstance(role, str) or ("content" not in message and not calls):
        raise UserError(f"{where}: message {number} has no role and content")
    content = message.get("content")
    content = _content(where, number, "" if content is None and calls else content)
    out: dict[str, Any] = {"role": role, "content": content}
    if calls:
        out["tool_calls"] = _calls(where, number, calls)
    if role == "tool":
        out |= {key: message[key] for key in ("name", "tool_call_id") if isinstance(message.get(key), str)}
    return out


def _sharegpt(where: str, number: int, message: dict[str, Any]) -> dict[str, Any]:
    role = _SHAREGPT.get(message["from"])
    if role is None:
        raise UserError(f"{where}: message {number} is from {message['from'][:40]!r}; known are {', '.join(_SHAREGPT)}")
    content = _content(where, number, message["value"])
    if message["from"] != "function_call":
        return {"role": role, "content": content}
    calls = _parsed(where, number, content)
    return {
        "role": role,
        "content": "",
        "tool_calls": _calls(where, number, calls if isinstance(calls, list) else [calls]),
    }


def _content(where: str, number: int, value: Any) -> str:
    """Text, or the text of parts such as ``{"type": "text", "text": ...}``."""
    what = f"content of message {number}"
    if not isinstance(value, list):
        return checked_text(where, what, value)
    texts = []
    for place, part in enumerate(value, 1):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise UserError(
                f"{where}: part {place} of the {what} is {type_name(part)} without a type, expected "
                '{"type": "text", "text": "..."}'
            )
        if part["type"] not in ("text", "input_text", "output_text"):
            raise UserError(
                f"{where}: part {place} of the {what} is of type {part['type'][:40]!r}, but the models "
                "read text only; leave the row out"
            )
        texts.append(checked_text(where, f"part {place} of the {what}", part.get("text")))
    return "".join(texts)


def _calls(where: str, number: int, calls: Any) -> list[dict[str, Any]]:
    """Calls of functions as templates read them: the arguments an object, where OpenAI's are its text."""
    out = []
    for call in calls if isinstance(calls, list) else [calls]:
        whole = call if isinstance(call, dict) else {}
        inner = whole.get("function")
        function = inner if isinstance(inner, dict) else whole
        name, arguments = function.get("name"), function.get("arguments", {})
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{where}: a tool call of message {number} names no function; expected "
                '{"function": {"name": "...", "arguments": {...}}}'
            )
        if isinstance(arguments, str):
            arguments = _parsed(where, number, arguments) if arguments.strip() else {}
        kept = {"id": whole["id"]} if isinstance(whole.get("id"), str) else {}
        out.append(
            {
                **kept,
                "type": "function",
                "function": {
                    "name": checked_text(where, f"a function's name in message {number}", name),
                    "arguments": _without_nulls({} if arguments is None else arguments),
                },
            }
        )
    return out


def _parsed(where: str, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{where}: the tool call of message {number} is not valid JSON ({e}); mend it or leave the row out"
        ) from None


def _without_nulls(value: Any) -> Any:
    """Tables have one type for all rows: what a row's object lacks is null there."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
