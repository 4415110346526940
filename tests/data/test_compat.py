"""Teacher and student must share token ids; everything else is refused with the difference named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npd_ascend.config.schema import DataConfig
from npd_ascend.data.compat import agree, check_pair
from npd_ascend.errors import UserError


@pytest.fixture
def pair(tmp_path, chatml):
    """Two checkpoint folders (config and tokenizer; weights do not matter here)."""
    for name in ("teacher", "student"):
        shutil.copytree(chatml, tmp_path / name)
        config(tmp_path / name)
    return tmp_path / "teacher", tmp_path / "student"


def config(folder: Path, vocab_size: int = 304) -> None:
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": vocab_size,
                "hidden_size": 8,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 64,
                "rope_theta": 10000.0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "hidden_act": "silu",
            }
        )
    )


def edit(path: Path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_same_files_and_widths_that_differ_in_padding(pair):
    check_pair(*pair)
    config(pair[0], 320)
    check_pair(*pair)


def test_the_usual_case_does_not_import_transformers(pair):
    code = (
        "import sys; from npd_ascend.data.compat import check_pair; "
        f"check_pair({str(pair[0])!r}, {str(pair[1])!r}); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_logits_too_narrow(pair):
    config(pair[1], 299)
    with pytest.raises(UserError, match="logits cover 299 ids but the tokenizer .* has 300"):
        check_pair(*pair)


def test_same_vocabulary_in_other_words_is_accepted(pair):
    path = pair[0] / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    check_pair(*pair)


def test_vocabulary_differs(pair):
    def swap(tree):
        vocab = tree["model"]["vocab"]
        a, b = list(vocab)[10:12]
        vocab[a], vocab[b] = vocab[b], vocab[a]

    edit(pair[0] / "tokenizer.json", swap)
    with pytest.raises(UserError, match=r"different vocabularies \(2 tokens differ, first '.*': id 1\d and 1\d\)"):
        check_pair(*pair)


def test_merges_differ(pair):
    edit(pair[0] / "tokenizer.json", lambda tree: tree["model"].update(merges=[]))
    with pytest.raises(UserError, match="cut text differently"):
        check_pair(*pair)


def test_templates_that_differ_in_more_than_the_default_system_turn_are_for_the_user_to_choose(pair):
    original = (pair[0] / "tokenizer_config.json").read_text()
    (pair[0] / "tokenizer_config.json").write_text(original.replace("assistant", "Assistant"))
    with pytest.raises(UserError, match="different chat templates.*set data.chat_template to student or teacher"):
        check_pair(*pair)
    for choice in ("student", "teacher", str(pair[1])):
        check_pair(*pair, settings=DataConfig(prompts=[], chat_template=choice))
    check_pair(*pair, settings=DataConfig(prompts=[], template="raw"))


def test_pair_as_released(qwen_pair, tmp_path):
    teacher, student = qwen_pair(tmp_path)
    check_pair(teacher, student)
    both = agree(student, DataConfig(prompts=[]), student, teacher)
    assert both.chosen.source == "teacher" and both.template.eos == [290, 292] and both.template.end_ids == [292]
    assert both.vocabulary.size == 295 and both.special_tokens == {"eos_token": "<|im_end|>"}
    template, stops = both.remarks
    assert template.level == "info" and "data.chat_template" in template.text and "base model" in template.text
    assert stops.level == "warning" and stops.text.startswith(
        "stop tokens differ: student <|endoftext|> (290), teacher <|im_end|> (292) or <|endoftext|> (290), chat "
        "template <|im_end|> (292)"
    )
    assert "answers may run to rollout.max_new_tokens" in stops.text


@pytest.mark.parametrize(
    "theirs, ours, level, fragment",
    [
        ([290, 292], [292, 290], None, ""),
        ([292], [292, 290], "info", "each of them ends an answer"),
        ([290], [292], "warning", "The teacher does not stop at the template's end of turn"),
        ([292], [290], "warning", "The student does not stop at the template's end of turn yet"),
    ],
)
def test_stop_sets_are_compared(qwen_pair, tmp_path, theirs, ours, level, fragment):
    teacher, student = qwen_pair(tmp_path)
    shutil.copy(teacher / "tokenizer_config.json", student)  # one template, so that only the ids differ
    for folder, ids in ((teacher, theirs), (student, ours)):
        for name in ("config.json", "generation_config.json"):
            edit(folder / name, lambda tree, ids=ids: tree.update(eos_token_id=ids))
        edit(
            folder / "tokenizer_config.json",
            lambda tree, ids=ids: tree.update(eos_token={290: "<|endoftext|>", 292: "<|im_end|>"}[ids[0]]),
        )
    remarks = agree(student, DataConfig(prompts=[]), student, teacher).remarks
    assert [r.level for r in remarks] == [level] * bool(level) and all(fragment in r.text for r in remarks)


def test_nothing_that_ends_an_answer_is_refused(qwen_tokenizer, tmp_path):
    for name in ("teacher", "student"):
        qwen_tokenizer(tmp_path / name, eos=None, default=None)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        agree(tmp_path / "student", DataConfig(prompts=[]), tmp_path / "student", tmp_path / "teacher")


def test_tokenizers_of_which_one_has_more_added_tokens(qwen_pair, qwen_tokenizer, tmp_path):
    teacher, student = qwen_pair(tmp_path)
    qwen_tokenizer(teacher, added=())  # as Qwen2 beside Qwen2.5
    check_pair(teacher, student)
    both = agree(student, DataConfig(prompts=[]), student, teacher)
    assert both.vocabulary.size == 293 and list(both.vocabulary.student_only) == ["<tool_call>", "</tool_call>"]
    assert "only the student's tokenizer has the added tokens <tool_call>, </tool_call>" in both.remarks[-1].text
    qwen_tokenizer(teacher, added=("<a>", "</tool_call>"))  # other tokens at the same ids
    with pytest.raises(UserError, match="first '<a>': id 293 and none, where the other has '<tool_call>'"):
        check_pair(teacher, student)
    qwen_tokenizer(student, added=("<tool_call>", "</tool_call>", *(f"<{i}>" for i in range(20))))
    qwen_tokenizer(teacher)
    with pytest.raises(UserError, match=r"student: its logits cover 304 ids but the tokenizer .* has 315"):
        check_pair(teacher, student)


def test_tokenizer_that_alone_puts_bos_before_a_text(metaspace, tmp_path):
    for name in ("teacher", "student"):
        shutil.copytree(metaspace, tmp_path / name)
        config(tmp_path / name, 200)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    edit(teacher / "tokenizer.json", lambda tree: tree.update(post_processor=None))
    check_pair(teacher, student)
    warning = agree(student, DataConfig(prompts=[]), student, teacher).remarks[-1]
    assert warning.level == "warning" and "puts '<s>' before a text, the teacher's nothing" in warning.text


def test_teacher_that_is_not_asked_may_have_another_vocabulary(qwen_pair, metaspace, tmp_path):
    teacher, student = qwen_pair(tmp_path)
    both = agree(student, DataConfig(prompts=[]), student, teacher, needed=False)
    assert both.chosen.source == "teacher"  # it fits: a student trained on references reads what a distilled one reads
    alone = agree(student, DataConfig(prompts=[]), student, metaspace, needed=False)
    assert alone.chosen.source == "student" and "helpful assistant" in alone.chosen.text
    with pytest.raises(UserError, match="different vocabularies"):
        agree(student, DataConfig(prompts=[]), student, metaspace)


def test_missing_files(pair, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pair[0] / name).unlink()
    check_pair(*pair)  # a teacher without tokenizer: only the widths can be compared
    with pytest.raises(UserError):
        check_pair(tmp_path / "gone", pair[1])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pair[1] / name).unlink()
    with pytest.raises(UserError, match="models.tokenizer"):
        check_pair(*pair)


def test_damaged_tokenizer(pair):
    for folder in pair:
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        check_pair(*pair)
