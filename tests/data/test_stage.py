"""The prepare stage: contents, counts, resume and its refusals."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npd_ascend.config.schema import DataConfig
from npd_ascend.data.job import PrepareJob
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.pipeline.fingerprints import Fingerprints
from npd_ascend.store.identity import prompt_id


def test_rows_and_manifest(lines, prepare, mini_tokenizer):
    path = lines({"prompt": "a1 a2", "response": "a2", "answer": 5}, {"prompt": "b1 c3 d4", "answer": "x"})
    dataset = prepare(path, response_field="response", answer_field="answer")
    first, second = dataset.read_all().to_pylist()
    tokenizer = load_tokenizer(mini_tokenizer)
    assert (
        tokenizer.decode(first["prompt_ids"]) == "<s> [unused9] 系统 ： [unused10] [unused9] 用户 ： a1 a2 "
        "[unused10] [unused9] 助手 ："
    )
    assert tokenizer.convert_ids_to_tokens(first["reference_ids"]) == ["a2", "[unused10]"]
    assert second["reference_ids"] is None and first["label_ids"] is None
    assert (first["answer"], first["text"], second["answer"]) == ("5", "a1 a2", "x")
    assert first["prompt_id"] == prompt_id(first["prompt_ids"], 0) and second["prompt_index"] == 1
    assert dataset.extra == {
        "prompts": 2,
        "dropped_too_long": 0,
        "longest_prompt": 15,
        "longest_reference": 2,
        "longest_prompt_and_reference": 16,
        "header_ids": [1, 3, 9, 12],
        "eos_token_ids": [4],
        "end_token_id": 4,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "tokenizer_size": 77,
        "template": "chat",
        "chat_template": tokenizer.chat_template,
        "special_tokens": {"bos_token": "<s>", "eos_token": "[unused10]"},
    }


def test_labels_align_or_the_line_is_named(lines, prepare):
    good = {"prompt": "a1 a2", "response": "b1 b2", "labels": "c1 c2"}
    row = prepare(lines(good), response_field="response", labels_field="labels").read(0).to_pylist()[0]
    assert len(row["label_ids"]) == len(row["reference_ids"]) == 3
    assert row["label_ids"][:2] != row["reference_ids"][:2] and row["label_ids"][2] == row["reference_ids"][2]
    with pytest.raises(UserError, match=r"line 2: 2 label tokens for 3 response tokens"):
        prepare(lines(good, {**good, "labels": "c1"}), out="bad", response_field="response", labels_field="labels")


def test_too_long_is_dropped_and_counted_or_refused(lines, prepare):
    path = lines(*({"prompt": " ".join(["a1"] * n)} for n in (1, 5, 2, 9, 3)))
    dataset = prepare(path, max_prompt_tokens=15, shard_size=2)
    assert [r["prompt_index"] for r in dataset.read_all().to_pylist()] == [0, 1, 2]
    assert [len(t) for t in dataset.iter_tables()] == [2, 1]
    assert dataset.extra["dropped_too_long"] == 2 and dataset.extra["longest_prompt"] == 15
    with pytest.raises(UserError, match=r"line 2: prompt has 17 tokens, over data.max_prompt_tokens = 15"):
        prepare(path, out="refuse", max_prompt_tokens=15, too_long="refuse")
    with pytest.raises(UserError, match="all 5 prompts are longer"):
        prepare(path, out="all", max_prompt_tokens=3)


def test_resume_makes_only_what_is_missing_and_makes_it_alike(lines, prepare):
    path = lines(*({"prompt": f"a1 b{1 + i % 8}"} for i in range(10)))
    dataset = prepare(path, shard_size=3)
    before = {i: dataset.path(i).read_bytes() for i in range(4)}
    kept = dataset.path(1).stat().st_mtime_ns
    dataset.discard(2)
    again = prepare(path, shard_size=3)
    assert {i: again.path(i).read_bytes() for i in range(4)} == before
    assert again.path(1).stat().st_mtime_ns == kept


def test_complete_dataset_returns_at_once(lines, prepare):
    path = lines({"prompt": "a1 b1"})
    prepare(path)
    path.write_text("not even JSON")
    assert prepare(path).rows == 1


def test_limit_of_the_job(lines, prepare):
    path = lines(*({"prompt": "a1"} for _ in range(5)))
    assert prepare(path, limit=3).rows == 3


def test_raw_template(lines, prepare, chatml):
    dataset = prepare(
        lines({"prompt": "The way", "response": " is long"}),
        template="raw",
        tokenizer=chatml,
        response_field="response",
    )
    row = dataset.read(0).to_pylist()[0]
    tokenizer = load_tokenizer(chatml)
    assert tokenizer.decode(row["prompt_ids"]) == "The way"
    assert tokenizer.decode(row["reference_ids"]) == " is long<|im_end|>"
    assert dataset.extra["template"] == "raw" and dataset.extra["bos_token_id"] is None
    assert dataset.extra["chat_template"] is None and dataset.extra["special_tokens"] == {}


def test_pair_as_released_is_rendered_by_the_teachers_template_and_ends_in_any_stop_token(
    lines, prepare, qwen_pair, tmp_path, progress_lines
):
    teacher, student = qwen_pair(tmp_path)
    files = {"tokenizer": student, "student": student, "teacher": teacher}
    dataset = prepare(lines({"prompt": "How many?", "response": "72"}), response_field="response", **files)
    row, tokenizer = dataset.read(0).to_pylist()[0], load_tokenizer(student)
    assert tokenizer.decode(row["prompt_ids"]) == (
        "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(row["reference_ids"]) == "72<|im_end|>"
    extra, ids = dataset.extra, tokenizer.convert_tokens_to_ids
    assert extra["eos_token_ids"] == [ids("<|endoftext|>"), ids("<|im_end|>")]
    assert extra["end_token_id"] == ids("<|im_end|>") and extra["special_tokens"] == {"eos_token": "<|im_end|>"}
    assert extra["chat_template"] == load_tokenizer(teacher).chat_template
    said = "\n".join(progress_lines())
    assert f"the teacher's ({teacher}) renders the input of both models" in said and "stop tokens differ" in said
    own = prepare(lines({"prompt": "How many?"}), out="own", chat_template="student", **files)
    assert "You are a helpful assistant." in tokenizer.decode(own.read(0).to_pylist()[0]["prompt_ids"])


def test_token_that_the_teacher_lacks_is_refused_with_its_line(lines, prepare, qwen_tokenizer, tmp_path):
    teacher = qwen_tokenizer(tmp_path / "teacher")
    student = qwen_tokenizer(tmp_path / "student", added=("<tool_call>", "</tool_call>", "<fim>"))
    files = {"tokenizer": student, "student": student, "teacher": teacher}
    dataset = prepare(lines({"prompt": "a"}, {"prompt": "b"}), **files)
    assert dataset.extra["tokenizer_size"] == 295  # that of the teacher; the student's is 296
    with pytest.raises(UserError, match=r"line 2: it has the token '<fim>', which only the student's tokenizer knows"):
        prepare(lines({"prompt": "a"}, {"prompt": "b <fim>"}), out="fim", **files)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.tuples(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip)), min_size=1, max_size=6
    ),
    shard=st.integers(1, 4),
    data=st.data(),
)
def test_any_text_survives(tmp_path_factory, prepare, chatml, texts, shard, data):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in texts))
    if any("\ud800" <= c <= "\udfff" for pair in texts for text in pair for c in text):
        return
    dataset = prepare(path, out=str(folder / "out"), tokenizer=chatml, response_field="response", shard_size=shard)
    tokenizer = load_tokenizer(chatml)
    rows = dataset.read_all().to_pylist()
    assert len(rows) == len(texts)
    for row, (prompt, response) in zip(rows, texts, strict=True):
        assert tokenizer.decode(row["prompt_ids"]) == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(row["reference_ids"]) == f"{response}<|im_end|>"


def test_a_setting_that_came_later_leaves_fingerprints_at_its_default(lines, tmp_path, mini_tokenizer):
    """Runs that were stored before there was such a setting are still known."""
    path = lines({"prompt": "a1 b1"})

    def of(**data):
        settings = DataConfig(prompts=[path], **data)
        job = PrepareJob(out=tmp_path, fingerprint="", files=[path], tokenizer=mini_tokenizer, settings=settings)
        return Fingerprints().of(job, "prepare"), Fingerprints()._fields(job, "prepare")["settings"]

    (default, counted), (last, changed) = of(), of(reference_turns="last")
    assert default != last and changed["reference_turns"] == "last" and "reference_turns" not in counted
