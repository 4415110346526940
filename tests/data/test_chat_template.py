"""One template renders the input of both models; which one follows from what the two bring."""

from __future__ import annotations

import json

import pytest

from npd_ascend.data.chat_template import Speaker, choose
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError


@pytest.fixture
def speakers(tmp_path, qwen_tokenizer):
    """``make(teacher={...}, student={...})``: options of ``qwen_tokenizer``, and ``stops`` of the checkpoint."""

    def make(**given):
        out = {}
        for name, options in given.items():
            stops = options.pop("stops", None)
            folder = qwen_tokenizer(tmp_path / name, **options)
            if stops is not None:
                (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
            out[name] = Speaker(load_tokenizer(folder), folder, folder)
        return out

    return make


BASE = {"eos": "<|endoftext|>", "default": "You are a helpful assistant.", "stops": 290}
CHAT = {"default": "You are Qwen.", "stops": [292, 290]}
CODER = {"default": "You are a coder.", "stops": [292]}


@pytest.mark.parametrize(
    "teacher, student, system, source",
    [
        (CHAT, BASE, None, "teacher"),  # Qwen2.5's pairs as released
        (CHAT, {**BASE, "eos": "<|im_end|>"}, None, "teacher"),  # a base model whose tokenizer alone says otherwise
        (CHAT, {**BASE, "default": "You are Qwen."}, None, "student"),  # alike: no choice to make
        (CHAT, BASE, "be kind", "student"),  # alike, since every prompt brings a system turn
        (CHAT, CODER, None, "student"),  # both chat: only the default system turn differs
        (CHAT, {**BASE, "default": None}, None, "teacher"),
        ({**CHAT, "default": None}, BASE, None, "student"),
    ],
)
def test_auto(speakers, teacher, student, system, source):
    both = speakers(teacher=dict(teacher), student=dict(student))
    chosen = choose("auto", both["student"], both["teacher"], system)
    assert chosen.source == source and chosen.text == both[source].tokenizer.chat_template
    named = both["teacher"].tokenizer.chat_template != both["student"].tokenizer.chat_template and system is None
    assert bool(chosen.why) == named


def test_none_has_one(speakers):
    both = speakers(teacher={"default": None}, student={"default": None})
    assert choose("auto", both["student"], both["teacher"]).text is None
    for name in ("teacher", "student"):
        with pytest.raises(UserError, match=f"data.chat_template is {name}, but .*{name} has no chat template"):
            choose(name, both["student"], both["teacher"])


def test_teacher_without_tokenizer(speakers):
    student = speakers(student=dict(BASE))["student"]
    assert choose("auto", student, None).source == "student" and not choose("auto", student, None).why
    with pytest.raises(UserError, match="the teacher has no chat template"):
        choose("teacher", student, None)


def test_by_path(speakers, tmp_path):
    both = speakers(teacher=dict(CHAT), student=dict(BASE))
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[-1]['content'] }}")
    assert choose(str(file), both["student"], both["teacher"]).text == "{{ messages[-1]['content'] }}"
    assert choose(str(tmp_path / "teacher"), both["student"], None).text == both["teacher"].tokenizer.chat_template
    with pytest.raises(UserError, match="data.chat_template .*gone: cannot be read"):
        choose(str(tmp_path / "gone"), both["student"], both["teacher"])


def test_end_token_that_a_template_names_is_its_owners(speakers):
    named = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    both = speakers(teacher={"chat_template": named, "stops": 292}, student={**BASE, "default": None})
    chosen, tokenizer = choose("auto", both["student"], both["teacher"]), both["student"].tokenizer
    chosen.apply(tokenizer)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "user: a<|im_end|>assistant: b<|im_end|>"
