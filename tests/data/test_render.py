"""Templates come from strangers: what they may cost, and that harmless ones render as transformers renders them."""

from __future__ import annotations

import os
import time

import pytest

from npd_ascend.data import render as room
from npd_ascend.data.render import TemplateFault, render
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError

CHAT = [{"role": "user", "content": 'hi\u2028 \\ "q" 自然'}]


@pytest.fixture
def tokenizer(chatml):
    return load_tokenizer(chatml)


@pytest.fixture
def hasty(monkeypatch):
    """Little patience, and a process that is up already."""
    room._RENDERER._running()
    monkeypatch.setattr(room, "SECONDS", 1.0)


@pytest.mark.parametrize("generation", [True, False])
def test_same_text_as_in_process(tokenizer, mini_tokenizer, generation):
    chats = [CHAT, [{"role": "system", "content": "s"}, *CHAT], [*CHAT, {"role": "assistant", "content": "a"}]]
    for t in (tokenizer, load_tokenizer(mini_tokenizer)):
        assert render(t, chats, generation) == [
            t.apply_chat_template(c, tokenize=False, add_generation_prompt=generation) for c in chats
        ]


def test_tools_are_rendered_as_in_process(tokenizer):
    tokenizer.chat_template = "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls }}{% endfor %}"
    tools, calls = [{"function": {"name": "f"}}], [{"function": {"name": "f", "arguments": {"a": [1]}}}]
    chats = [CHAT, [*CHAT, {"role": "assistant", "content": "", "tool_calls": calls}]]
    assert render(tokenizer, chats, False, [tools, None]) == [
        tokenizer.apply_chat_template(c, tools=t, tokenize=False) for c, t in zip(chats, (tools, None), strict=True)
    ]


def test_nothing_to_render_does_not_hold_up_what_follows(tokenizer):
    begun = time.monotonic()
    for _ in range(20):
        assert render(tokenizer, [], True) == [] and len(render(tokenizer, [CHAT], True)) == 1
    assert time.monotonic() - begun < room.SECONDS


LOOPS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}"
)
COSTLY = {
    "nested loops": (LOOPS, "takes more than 1 s"),
    "a power that C computes": ("{{ 7 ** (7 ** 9) }}", "takes more than 1 s"),
    "a long constant": ("{{ 'a' * 10**10 }}", "takes more than 1 GB of memory"),
    "doubling": (
        "{% set n = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "takes more than 1 GB of memory|takes more than 1 s",
    ),
    "much text": ("{{ 'a' * 20000000 }}", "makes more than 16 MB"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_template_is_one_clear_line(tokenizer, hasty, name):
    tokenizer.chat_template, said = COSTLY[name]
    begun = time.monotonic()
    with pytest.raises(UserError, match=said) as e:
        Template(tokenizer, "auto", [0])
    assert time.monotonic() - begun < 20 and "data.template: raw" in str(e.value) and "chatml" in str(e.value)


def test_next_template_is_rendered_after_a_costly_one(tokenizer, hasty, monkeypatch):
    good, tokenizer.chat_template = tokenizer.chat_template, LOOPS
    with pytest.raises(UserError):
        render(tokenizer, [CHAT], True)
    tokenizer.chat_template = good
    monkeypatch.setattr(room, "SECONDS", 60.0)
    assert render(tokenizer, [CHAT], True)[0].endswith("assistant\n")


def test_fault_says_which_conversation_and_spares_the_others(tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    with pytest.raises(TemplateFault, match="no critics") as e:
        render(tokenizer, [CHAT, [{"role": "critic", "content": "x"}], CHAT], True)
    assert e.value.index == 1
    assert render(tokenizer, [CHAT], True) == [CHAT[0]["content"]]


@pytest.mark.parametrize(
    "template,said",
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ", "unexpected"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_the_sandbox_refuses(tokenizer, template, said):
    tokenizer.chat_template = template
    with pytest.raises(TemplateFault, match=said):
        render(tokenizer, [CHAT], True)


def test_process_that_has_gone_is_started_again(tokenizer):
    first = render(tokenizer, [CHAT], True)
    os.kill(room._RENDERER._child.pid, 9)
    room._RENDERER._child.wait()
    assert render(tokenizer, [CHAT], True) == first
