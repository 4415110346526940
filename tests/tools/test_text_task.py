"""The text task: disjoint parts, a tokenizer that loses nothing, and clear refusals."""

from __future__ import annotations

import json

import make_text_task as task
import pytest

from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import load_tokenizer, tokenizer_size
from npd_ascend.errors import UserError


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "question": f"How many is {i} and {i}? ½ 数",
                    "answer": f"It is <<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}",
                }
            )
            + "\n"
            for i in range(60)
        )
    )
    return path


def build(data, out, **more):
    return task.build(
        data,
        out,
        **{
            "question": "question",
            "answer": "answer",
            "vocab_size": 320,
            "sft": 30,
            "prompts": 20,
            "evaluation": 10,
            "seed": 0,
            **more,
        },
    )


def test_parts_and_tokenizer(data, tmp_path):
    assert build(data, tmp_path / "o") == {"sft.jsonl": 30, "prompts.jsonl": 20, "eval.jsonl": 10}
    rows = {
        name: [json.loads(x) for x in (tmp_path / "o" / name).read_text().splitlines()]
        for name in ("sft.jsonl", "prompts.jsonl", "eval.jsonl")
    }
    prompts = [r["prompt"] for part in rows.values() for r in part]
    assert len(set(prompts)) == 60
    tokenizer = load_tokenizer(tmp_path / "o" / "tokenizer")
    assert tokenizer_size(tokenizer) == 320
    text = rows["eval.jsonl"][0]["prompt"] + " any text 🚀 at all\n\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    template = Template(tokenizer, "auto", [tokenizer.eos_token_id])
    assert tokenizer.decode(template.header_ids) == "<s>[unused9]助手：" and len(template.header_ids) <= 4


def test_seed(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(data, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / n / "sft.jsonl").read_text() for n in "abc")
    assert a == b and a != c


def test_refusals(data, tmp_path):
    with pytest.raises(UserError, match="has 60 rows, 140 are asked for"):
        build(data, tmp_path / "o", sft=110)
    with pytest.raises(UserError, match="no field 'text'"):
        build(data, tmp_path / "o", question="text")
