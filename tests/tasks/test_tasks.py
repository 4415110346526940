"""Known data sets: what is asked, what is right, and that the two belong together."""

from __future__ import annotations

import json

import pytest

from npd_ascend.config.load import parse_config
from npd_ascend.config.schema import DataConfig
from npd_ascend.data.prompts import read_prompts
from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import REWARDS, TASKS, Attempt, checker_of
from npd_ascend.tasks.rewards.code import program

ROWS = {
    "gsm8k": ({"question": "2+2?", "answer": "It is\n#### 4"}, "so \\boxed{4}", "\\boxed{5}"),
    "choice": ({"question": "Sky?", "choices": ["red", "blue"], "answer": 1}, "B", "A"),
    "math": ({"problem": "1/2?", "solution": "so $\\boxed{7}$", "level": "1"}, "\\boxed{7}", ""),
}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_judge_of_a_task_takes_its_answers(name):
    row, right, wrong = ROWS[name]
    task = TASKS.find(name)
    asked, answer = task.of(row, "here")
    assert next(iter(row.values())) in asked
    judge = REWARDS.find(task.reward).judge
    assert judge(Attempt(asked, right, answer), None) == 1 and not judge(Attempt(asked, wrong, answer), None)


def test_choices_have_letters():
    row = {"question": "Sky?", "choices": ["red", "blue"], "answer": "b"}
    asked, right = TASKS.find("choice").of(row, "here")
    assert asked.splitlines()[:3] == ["Sky?", "A. red", "B. blue"] and right == "B"
    with pytest.raises(UserError, match="file, line 3: data.task choice cannot read this row .*none of 2 choices"):
        TASKS.find("choice").of({**row, "answer": "C"}, "file, line 3")


def test_programs_of_the_code_tasks():
    row = {"prompt": "def add(a, b):\n", "test": "def check(f):\n    assert f(1, 2) == 3", "entry_point": "add"}
    asked, answer = TASKS.find("humaneval").of(row, "here")
    text = program("    return a + b\n", answer, "done")
    assert "def add(a, b):" in asked and text.index("return a + b") < text.index("check(add)") < text.index("'done'")
    row = {"text": "Add.", "test_list": ["assert add(1, 2) == 3"], "test_imports": ["import math"]}
    asked, answer = TASKS.find("mbpp").of(row, "here")
    assert "assert add(1, 2) == 3" in asked and program("x", answer, "d").startswith("import math\n")


def test_every_task_names_a_reward_that_is_there():
    assert {t.reward for t in TASKS.all().values()} <= set(REWARDS.names())


def test_rows_are_read_by_their_task(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS["gsm8k"][0]) + "\n" + json.dumps({"question": "only"}) + "\n")
    settings = DataConfig(prompts=[path], task="gsm8k", suffix=" /no_think", system="Be brief.")
    rows = read_prompts([path], settings, need_answer=True)
    first = next(rows)
    assert first.answer == "It is\n#### 4" and first.text.startswith("2+2?\nPlease reason")
    assert [m["role"] for m in first.messages] == ["system", "user"]
    assert first.messages[1]["content"] == first.text + " /no_think"
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: no field 'answer'; data.task gsm8k reads question"):
        next(rows)


def test_the_task_checks_held_out_answers():
    def name(**evaluate):
        models = {"teacher": "t", "student": "s"}
        data = {"prompts": ["p"], "task": evaluate.pop("task", None)}
        tree = {"run": {"dir": "r"}, "models": models, "data": data, "evaluate": evaluate}
        return checker_of(parse_config(tree, "test"))

    assert name(task="mbpp") == "code" and name(task="mbpp", checker="number") == "number" and name() == "exact"
