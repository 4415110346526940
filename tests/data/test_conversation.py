"""Messages as OpenAI and ShareGPT write them, and what is refused of them with its row."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npd_ascend.config.schema import DataConfig
from npd_ascend.data.conversation import read_messages, read_tools
from npd_ascend.data.prompts import read_prompts
from npd_ascend.errors import UserError

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1, {"b": 2}]}}}


def one(**message):
    return read_messages("x, line 1", [message], "field 'm'")[0]


def test_forms_of_a_call_are_one():
    openai = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": 2}]}'}}
    assert one(role="assistant", content=None, tool_calls=[openai])["tool_calls"] == [CALL]
    assert one(role="assistant", tool_calls=[CALL]) == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    sharegpt = one(**{"from": "function_call", "value": '{"name": "f", "arguments": {"a": [1, {"b": 2}]}}'})
    assert sharegpt["tool_calls"] == [{k: v for k, v in CALL.items() if k != "id"}]
    assert (
        one(role="assistant", content="hm", tool_calls=[{"function": {"name": "f", "arguments": ""}}])["tool_calls"][0][
            "function"
        ]["arguments"]
        == {}
    )


def test_nulls_that_a_table_puts_in_are_no_arguments(tmp_path):
    """A Parquet column has one type for all rows, so each call has the arguments of all others, null."""

    def chat(arguments):
        return {
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
                },
            ]
        }

    pq.write_table(pa.Table.from_pylist([chat({"city": "Oslo"}), chat({"day": 3})]), tmp_path / "t.parquet")
    rows = list(read_prompts([tmp_path / "t.parquet"], DataConfig(prompts=[]), need_reference=True))
    found = [r.turns[0]["tool_calls"][0]["function"]["arguments"] for r in rows]
    assert found == [{"city": "Oslo"}, {"day": 3}] and "tool_calls" not in rows[0].messages[0]


def test_a_tools_name_and_id_stay_and_nothing_else_does():
    kept = {"role": "tool", "content": "x", "name": "f", "tool_call_id": "c"}
    assert one(**kept, weight=1) == kept
    assert one(role="user", content="x", name="Ann") == {"role": "user", "content": "x"}


@pytest.mark.parametrize("value", [[{"name": "f"}], '[{"name": "f"}]', [{"name": "f", "more": None}]])
def test_tools(value):
    assert read_tools("x", value) == [{"name": "f"}]
    assert read_tools("x", "") is read_tools("x", []) is read_tools("x", None) is None


REFUSED = {
    "role that ShareGPT lacks": ({"from": "narrator", "value": "x"}, "message 1 is from 'narrator'; known are system"),
    "image": (
        {"role": "user", "content": [{"type": "image"}]},
        "part 1 of the content of message 1 is of type 'image'",
    ),
    "part without text": (
        {"role": "user", "content": [{"type": "text"}]},
        "part 1 of the content of message 1 is null",
    ),
    "part that is a number": ({"role": "user", "content": [3]}, "is a number without a type"),
    "null": ({"role": "user", "content": None}, "content of message 1 is null, expected text"),
    "call without a name": ({"role": "assistant", "tool_calls": [{"function": {}}]}, "names no function"),
    "call that is a number": ({"role": "assistant", "tool_calls": 3}, "names no function"),
    "call cut off": ({"from": "function_call", "value": '{"name": "f"'}, "message 1 is not valid JSON"),
    "no message": (3, "message 1 has no role and content"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    message, said = REFUSED[case]
    with pytest.raises(UserError) as e:
        read_messages("x.jsonl, line 7", [message], "field 'm'")
    assert str(e.value).startswith("x.jsonl, line 7: ") and said in str(e.value)


@pytest.mark.parametrize("value", [3, "{", '{"name": "f"}', [3]])
def test_tools_that_are_none(value):
    with pytest.raises(UserError, match="x.jsonl, line 7: field 'tools'"):
        read_tools("x.jsonl, line 7", value)


def row(lines, record, need=True, **settings):
    return next(read_prompts([lines(record)], DataConfig(prompts=[], **settings), need_reference=need))


def test_precedence_of_fields(lines):
    record = {
        "prompt": "p",
        "messages": [{"role": "user", "content": "m"}, {"role": "assistant", "content": "a"}],
        "question": "q",
        "answer": "x",
        "output": "o",
        "mine": "own",
    }
    assert (row(lines, record).text, row(lines, record).response) == ("p", "o")
    del record["prompt"]
    assert (row(lines, record).text, row(lines, record).response) == ("m", "a")
    named = row(lines, record, prompt_field="question", response_field="mine")
    assert (named.text, named.response) == ("q", "own")
    del record["messages"]
    assert (row(lines, record).text, row(lines, record).response) == ("q", "o")
    assert row(lines, record, need=False).response is None  # nobody has asked for it
    assert row(lines, {**record, "output": None}).response == "x"


def test_named_instruction_takes_no_context_along(lines):
    record = {"instruction": "i", "input": "c", "output": "o"}
    assert row(lines, record).text == "i\nc" and row(lines, record, prompt_field="instruction").text == "i"


def test_system_of_conversation_row_and_configuration(lines):
    chat = [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]
    own = [{"from": "system", "value": "first"}, *chat]
    for record, wanted in (
        ({"conversations": own, "system": "row"}, "first"),
        ({"conversations": chat, "system": "row"}, "row"),
        ({"conversations": chat}, "general"),
    ):
        assert row(lines, record, system="general").messages == [
            {"role": "system", "content": wanted},
            {"role": "user", "content": "h"},
        ]
