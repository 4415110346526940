"""Header, end of turn and references, derived from templates of different habits."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import Tokenizer, processors

from npd_ascend.data.pangu import PANGU_TEMPLATE
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer, tokenizer_size
from npd_ascend.errors import UserError


def user(text):
    return [{"role": "user", "content": text}]


def answer_ids(template, question, answer):
    heads = template.render([user(question)])
    prompt = template.prompts(heads)
    return prompt[0], template.answers([user(question)], heads, prompt, [answer])[0]


def test_pangu(mini_tokenizer):
    tokenizer = load_tokenizer(mini_tokenizer)
    template = Template(tokenizer, "auto", [tokenizer.eos_token_id])
    assert template.chat
    assert template.render([user("a1 b2")]) == [
        "<s>[unused9]系统：[unused10][unused9]用户：a1 b2[unused10][unused9]助手："
    ]
    prompt, answer = answer_ids(template, "a1 b2", "b1 b2")
    assert tokenizer.convert_ids_to_tokens(template.header_ids) == ["<s>", "[unused9]", "助手", "："]
    assert prompt[-3:] == template.header_ids[1:] and prompt[0] == template.header_ids[0]
    assert tokenizer.convert_ids_to_tokens(answer) == ["b1", "b2", "[unused10]"]
    with_system = template.render([[{"role": "system", "content": "c3"}, *user("a1")]])[0]
    assert with_system == "<s>[unused9]系统：c3[unused10][unused9]用户：a1[unused10][unused9]助手："
    with pytest.raises(UserError, match="critic"):
        template.render([[{"role": "critic", "content": "x"}]])


def test_pangu_template_is_put_in_where_it_is_missing(mini_tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((mini_tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "[unused10]"}'
    )
    assert load_tokenizer(tmp_path).chat_template == PANGU_TEMPLATE


def test_chatml_without_bos_and_with_a_line_feed_after_the_end(chatml):
    tokenizer = load_tokenizer(chatml)
    template = Template(tokenizer, "chat", eos_token_ids(chatml, tokenizer))
    assert tokenizer.decode(template.header_ids) == "<|im_start|>assistant\n"
    assert template.end_ids == [tokenizer.eos_token_id]
    prompt, answer = answer_ids(template, "How many?", "48 + 24\n")
    assert tokenizer.decode(prompt) == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(answer) == "48 + 24\n<|im_end|>"


def test_turn_that_ends_in_a_token_which_the_checkpoint_does_not_list(chatml):
    tokenizer = load_tokenizer(chatml)
    template = Template(tokenizer, "chat", [0])  # a base model: its end is <|endoftext|>
    assert tokenizer.decode(answer_ids(template, "q", "sold")[1]) == "sold<|im_end|>"
    assert template.eos == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_end_token_inside_the_answer_text_is_kept_to_the_last(chatml):
    tokenizer = load_tokenizer(chatml)
    template = Template(tokenizer, "chat", [tokenizer.eos_token_id])
    _, answer = answer_ids(template, "q", "a<|im_end|>b")
    assert tokenizer.decode(answer) == "a<|im_end|>b<|im_end|>"


def test_template_that_opens_answers_with_an_empty_thought(chatml):
    tokenizer = load_tokenizer(chatml)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] | trim }}"
    )
    template = Template(tokenizer, "chat", [tokenizer.eos_token_id])
    _, answer = answer_ids(template, "q", " sold ")
    assert tokenizer.decode(answer) == "<think></think>sold<|im_end|>"


def test_template_that_opens_the_prompt_with_a_thought_falls_back_to_the_answer_alone(chatml):
    tokenizer = load_tokenizer(chatml)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    template = Template(tokenizer, "chat", [tokenizer.eos_token_id])
    _, answer = answer_ids(template, "q", "sold")
    assert tokenizer.decode(answer) == "sold<|im_end|>"


def test_template_without_generation_header_or_end(metaspace):
    tokenizer = load_tokenizer(metaspace)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{% endif %}{% endfor %}"
    )
    template = Template(tokenizer, "auto", [tokenizer.eos_token_id])
    assert template.header_ids == [tokenizer.bos_token_id]
    prompt, answer = answer_ids(template, "How many", "the way")
    assert tokenizer.decode(prompt + answer).endswith("[/INST] the way</s>") and answer[-1] == tokenizer.eos_token_id


def test_raw_with_bos(metaspace):
    tokenizer = load_tokenizer(metaspace)
    template = Template(tokenizer, "auto", [tokenizer.eos_token_id])
    assert not template.chat and template.header_ids == [tokenizer.bos_token_id]
    prompt, answer = answer_ids(template, "The way", "is long")
    assert prompt == tokenizer("The way")["input_ids"] and prompt[0] == tokenizer.bos_token_id
    assert answer == [*tokenizer("is long", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_raw_without_bos_takes_the_end_token_as_context(chatml):
    tokenizer = load_tokenizer(chatml)
    template = Template(tokenizer, "raw", [tokenizer.eos_token_id])
    assert template.header_ids == [tokenizer.eos_token_id]
    assert tokenizer.decode(answer_ids(template, "The way", "is")[0]) == "The way"


def test_refusals(metaspace, chatml):
    tokenizer = load_tokenizer(metaspace)
    with pytest.raises(UserError, match="no chat template"):
        Template(tokenizer, "chat", [2])
    with pytest.raises(UserError, match="no end-of-sequence"):
        Template(tokenizer, "raw", [])
    tokenizer = load_tokenizer(chatml)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="does not show the assistant's answer"):
        Template(tokenizer, "chat", [2])
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(UserError, match="chat template refuses"):
        Template(tokenizer, "chat", [2])


def test_templates_cannot_reach_out_of_the_sandbox(chatml):
    tokenizer = load_tokenizer(chatml)
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match="chat template refuses"):
        Template(tokenizer, "chat", [2])


def test_tokenizer_folder_troubles(tmp_path, chatml):
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(UserError, match="models.tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    code = tmp_path / "code"
    code.mkdir()
    (code / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", null]}}'
    )
    (code / "vocab.json").write_text("{}")
    marker = tmp_path / "ran"
    (code / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass OwnTokenizer: pass\n")
    with pytest.raises(UserError, match="trust_remote_code"):
        load_tokenizer(code)
    (code / "tokenizer.json").write_bytes((chatml / "tokenizer.json").read_bytes())
    assert tokenizer_size(load_tokenizer(code)) == 300
    assert not marker.exists()


def test_eos_ids_come_from_all_places(tmp_path, chatml):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    assert eos_token_ids(tmp_path, load_tokenizer(chatml)) == [2, 7, 9]


@pytest.mark.parametrize("added_by_tokenizer", [False, True])
def test_bos_that_opens_every_turn_is_not_doubled_in_the_header(chatml, tmp_path, added_by_tokenizer):
    folder = variant(chatml, tmp_path / "t", "<|im_start|>", added_by_tokenizer)  # SmolLM2's files say so
    tokenizer = load_tokenizer(folder)
    template = Template(tokenizer, "chat", [2])
    assert tokenizer.decode(template.header_ids) == "<|im_start|>assistant\n" and template.header_ids.count(1) == 1
    prompt, _ = answer_ids(template, "q", "sold")
    assert tokenizer.decode(prompt) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_separate_bos_of_the_tokenizer_is_before_the_header(chatml, tmp_path):
    tokenizer = load_tokenizer(variant(chatml, tmp_path / "t", "<|endoftext|>", True))
    template = Template(tokenizer, "chat", [2])
    assert tokenizer.decode(template.header_ids) == "<|endoftext|><|im_start|>assistant\n"
    prompt, _ = answer_ids(template, "q", "sold")
    assert prompt[0] == 0 and prompt[-len(template.header_ids) + 1 :] == template.header_ids[1:]


def variant(chatml, folder, bos, added_by_tokenizer):
    shutil.copytree(chatml, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": bos}))
    if added_by_tokenizer:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder
