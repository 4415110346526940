"""What an exported folder says of the student's training."""

from __future__ import annotations

import json
import shutil

import pytest

from npd_ascend.config.job import Declaration
from npd_ascend.config.schema import DataConfig
from npd_ascend.data.chat_template import Speaker
from npd_ascend.data.compat import agree
from npd_ascend.data.declare import declare
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer
from npd_ascend.errors import UserError


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture
def base(qwen_pair, tmp_path):
    """(teacher, student, declaration of a student that was trained with the teacher)."""
    teacher, student = qwen_pair(tmp_path)
    both = agree(student, DataConfig(prompts=[]), student, teacher)
    return (
        teacher,
        student,
        Declaration(
            tokenizer=student,
            stop_token_ids=[292, 290],
            chat_template=both.chosen.text,
            special_tokens=both.special_tokens,
        ),
    )


def test_files_of_a_base_student_become_those_of_a_chat_model(base, tmp_path):
    teacher, student, by = base
    (student / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}')
    out = shutil.copytree(student, tmp_path / "out")
    declare(out, by, student)
    assert read(out, "config.json")["eos_token_id"] == read(out, "generation_config.json")["eos_token_id"] == [292, 290]
    assert read(out, "special_tokens_map.json") == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert {**read(out, "config.json"), "eos_token_id": 290} == read(student, "config.json")
    tokenizer, theirs = load_tokenizer(out), load_tokenizer(teacher)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    messages = [{"role": "user", "content": "How many?"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == theirs.apply_chat_template(
        messages, add_generation_prompt=True
    )
    assert eos_token_ids(out, tokenizer) == [292, 290] and Speaker(tokenizer, out, out).ends_its_turns


def test_template_file_has_the_last_word_and_is_written_too(base, tmp_path):
    _, student, by = base
    (student / "chat_template.jinja").write_text("{{ 'old' }}")
    out = shutil.copytree(student, tmp_path / "out")
    declare(out, by, student)
    assert (out / "chat_template.jinja").read_text() == by.chat_template
    assert load_tokenizer(out).chat_template == by.chat_template


def test_tokenizer_of_another_folder_comes_along(base, metaspace, tmp_path):
    _, student, by = base
    out = shutil.copytree(student, tmp_path / "out")
    (out / "vocab.json").write_text("{}")  # of the student's own, which was not used
    declare(out, by.model_copy(update={"tokenizer": metaspace, "chat_template": None}), student)
    assert (out / "tokenizer.json").read_bytes() == (metaspace / "tokenizer.json").read_bytes()
    assert read(out, "tokenizer_config.json") == read(metaspace, "tokenizer_config.json")
    assert not (out / "vocab.json").exists()


def test_one_stop_id_is_a_number_and_raw_prompts_leave_the_tokenizer_alone(base, tmp_path):
    _, student, by = base
    (student / "generation_config.json").unlink()
    out = shutil.copytree(student, tmp_path / "out")
    declare(out, by.model_copy(update={"stop_token_ids": [290], "chat_template": None, "special_tokens": {}}), student)
    assert read(out, "generation_config.json") == {"bos_token_id": 290, "eos_token_id": 290}
    assert read(out, "config.json")["eos_token_id"] == 290
    assert (out / "tokenizer_config.json").read_bytes() == (student / "tokenizer_config.json").read_bytes()


def test_damaged_file_is_named(base, tmp_path):
    _, student, by = base
    out = shutil.copytree(student, tmp_path / "out")
    (out / "generation_config.json").write_text("[")
    with pytest.raises(UserError, match="generation_config.json: not readable as JSON"):
        declare(out, by, student)
