"""Benchmark folders of synthetic rows in the published forms; none of the published rows is here."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def table(rows: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def objects(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def exam(n: int, seed: int) -> list[list[str]]:
    """Questions with four choices and the letter of the right one; the first has a line feed and an odd separator."""
    return [
        [f"What is {i} + {seed}?\n\u2028" if i == 0 else f"What is {i} + {seed}?"]
        + [str(i + seed + (j - i) % 4) for j in range(4)]
        + ["ABCD"[i % 4]]
        for i in range(n)
    ]


def numbered(rows: list[list[str]], head: list[str]) -> bytes:
    return table([["", *head], *([str(i), *row] for i, row in enumerate(rows))])


_WORD = {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
_MATH = {"problem": "What is half of 5?", "answer": "\\frac{5}{2}", "solution": "It is $\\boxed{\\frac{5}{2}}$."}
_CODE = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """Twice x."""\n',
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
_MBPP = {"prompt": "Write a function twice.", "test_imports": [], "test_list": ["assert twice(2) == 4"]}
_IFEVAL = {
    "key": 1,
    "prompt": "Answer without commas.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}
_WSC = {
    "target": {"span1_index": 0, "span1_text": "小明", "span2_index": 6, "span2_text": "他"},
    "idx": 0,
    "label": "true",
    "text": "小明说今天他累了。",
}
_DATE = {"day": "", "month": "", "year": ""}
_DROP = {
    "nfl_1": {
        "passage": "The Bears threw 3 passes, of 10 and 12 yards.",
        "qa_pairs": [
            {
                "query_id": "a",
                "question": "How many passes?",
                "answer": {"number": "3", "date": _DATE, "spans": []},
                "validated_answers": [{"number": "", "date": _DATE, "spans": ["three passes", "10"]}],
            }
        ],
    }
}
_GPQA = [
    ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
    ["Which is a noble gas?", "neon", "iron", "lead", "gold"],
    ["Which is a metal?", "iron", "neon", "argon", "xenon"],
]

FILES: dict[str, dict[str, bytes]] = {
    "mmlu": {
        "mmlu/dev/us_foreign_policy_dev.csv": table(exam(6, 1)),
        "mmlu/test/us_foreign_policy_test.csv": table(exam(8, 2)),
    },
    "cmmlu": {
        "cmmlu/dev/agronomy.csv": numbered(exam(5, 1), ["Question", "A", "B", "C", "D", "Answer"]),
        "cmmlu/test/agronomy.csv": numbered(exam(3, 3), ["Question", "A", "B", "C", "D", "Answer"]),
    },
    "ceval": {
        "ceval/dev/law_dev.csv": table(
            [["id", "question", "A", "B", "C", "D", "answer", "explanation"]]
            + [[str(i), *row, "because"] for i, row in enumerate(exam(5, 1))]
        ),
        "ceval/val/law_val.csv": numbered(exam(3, 3), ["question", "A", "B", "C", "D", "answer"]),
    },
    "cluewsc": {"cluewsc/test_public.json": objects(_WSC, {**_WSC, "label": "false"})},
    "gsm8k": {"gsm8k/test.jsonl": objects(_WORD, {**_WORD, "question": "Ben has 7 pens. How many?"})},
    "math500": {"math500/test.jsonl": objects(_MATH)},
    "math500_avg5": {"math500/test.jsonl": objects(_MATH)},
    "aime24": {"aime24/test.jsonl": objects({"problem": "What is 100 + 104?", "answer": "204"})},
    "aime25": {"aime25/test.jsonl": objects({"problem": "What is 100 + 104?", "answer": "204"})},
    "ifeval": {"ifeval/input_data.jsonl": objects(_IFEVAL)},
    "humaneval": {"humaneval/HumanEval.jsonl.gz": gzip.compress(objects(_CODE))},
    "mbpp": {"mbpp/sanitized-mbpp.json": json.dumps([{**_MBPP, "task_id": i} for i in (10, 11, 510, 511)]).encode()},
    "gpqa": {"gpqa/gpqa_diamond.csv": table(_GPQA)},
    "drop": {"drop/drop_dataset_dev.json": json.dumps(_DROP).encode()},
}


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_folder(*benchmarks)``: a data folder with their rows."""

    def make(*names: str) -> Path:
        for name in names:
            for path, content in FILES[name].items():
                (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "data" / path).write_bytes(content)
        return tmp_path / "data"

    return make
