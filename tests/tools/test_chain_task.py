"""The counter-example task: right sums, no prompt in two files, deterministic."""

from __future__ import annotations

import json

import make_chain_task as task


def test_rows(tmp_path):
    rows = {"sft_teacher": 40, "sft_student": 20, "prompts_train": 30, "eval": 10}
    for name in ("a", "b"):
        assert task.build(tmp_path / name, seed=3, length=6, rows=rows) == rows
    prompts = []
    for name, count in rows.items():
        text = (tmp_path / "a" / f"{name}.jsonl").read_text()
        assert text == (tmp_path / "b" / f"{name}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) == count
        for line in lines:
            digits = [int(d) for d in line["prompt"].split()]
            assert (
                line["response"]
                == line["answer"]
                == " ".join(str(sum(digits[: i + 1]) % 10) for i in range(len(digits)))
            )
        prompts += [line["prompt"] for line in lines]
    assert len(set(prompts)) == 100
