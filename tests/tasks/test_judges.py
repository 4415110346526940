"""Judges that work in processes of their own: mathematics, code, patterns, instructions."""

from __future__ import annotations

import importlib.util
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import REWARDS, Attempt
from npd_ascend.tasks.rewards import math as math_reward
from npd_ascend.tasks.rewards.code import code, code_of
from npd_ascend.tasks.rewards.format import format
from npd_ascend.tasks.rewards.ifeval import ifeval
from npd_ascend.tasks.rewards.math import math, right_of
from npd_ascend.tasks.worker import Workers

mathematics = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


def said(response: str, answer: str | None) -> Attempt:
    return Attempt("q", response, answer)


@mathematics
@pytest.mark.parametrize(
    "response, answer, right",
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", True),
        (r"so $\frac12$", r"\frac{1}{2}", True),
        (r"first \boxed{10}, no: \boxed{11}", "11", True),
        (r"first \boxed{11}, no: \boxed{10}", "11", False),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", True),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"The answer is 72.", "She sold 72.\n#### 72", True),
        (r"\boxed{7}", r"Thus $\boxed{7}$", True),
        (r"\boxed{7}", "8", False),
        ("", "8", False),
        (r"\boxed{}", "8", False),
        (r"\boxed{8}", None, False),
    ],
)
def test_math(response, answer, right):
    assert math(said(response, answer)) is right


def test_the_right_value_of_a_solution():
    assert [right_of(t) for t in (r"a \boxed{\frac{1}{2}} b", "x #### 7", " $3$ ")] == [r"\frac{1}{2}", "7", "3"]


@mathematics
def test_what_cannot_be_computed_is_wrong_and_costs_its_time_alone(monkeypatch):
    monkeypatch.setattr(math_reward, "_SECONDS", 1.5)
    assert math(said(r"\boxed{4}", "2+2"))  # starts a worker
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(math, said(r"\boxed{9^{9^{9^9}}}", "1"))
        assert [math(said(rf"\boxed{{{i}}}", f"{i}+0")) for i in range(4)] == [True] * 4
        assert not slow.result()
    assert time.monotonic() - begin < 20
    assert math(said(r"\boxed{4}", "2+2"))


@mathematics
def test_hostile_mathematics(monkeypatch):
    monkeypatch.setattr(math_reward, "_SECONDS", 1.0)
    for text in ("{" * 3000, r"\frac{" * 500, r"\boxed{\sqrt" * 300, "\0"):
        assert math(said(text, "1")) is False


def test_a_worker_that_dies_is_replaced():
    workers = Workers("os:_exit", "builtins:object", "x")
    assert workers.ask(5, status=3) is None and workers.ask(5, status=0) is None
    workers.close()
    sleepers = Workers("time:sleep", "builtins:object", "x")
    begin = time.monotonic()
    assert sleepers.ask(0.3, secs=9) is None and time.monotonic() - begin < 5  # a wrong keyword, or the alarm
    sleepers.close()


def test_no_library_is_one_line():
    with pytest.raises(UserError, match="works in no environment .*nowhere.*: install it"):
        Workers("builtins:abs", "nowhere:usable", "install it").check()


def test_format():
    assert format(said("well: \\boxed{3}", None)) and not format(said("well: 3", None))
    assert format(said("<think>a\nb</think>c", None), pattern=r"\A<think>.*</think>(?!.*<think>)")
    assert format(said("a" * 40, None), pattern=r"(a+)+$")
    begin = time.monotonic()
    assert not format(said("a" * 40 + "b", None), pattern=r"(a+)+$")  # would take years
    assert time.monotonic() - begin < 8
    assert not format(said("x", None), pattern="(")


TESTS = json.dumps({"tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"})
HUMANEVAL = json.dumps(
    {"prompt": 'def add(a, b):\n    """Sum."""\n', "entry_point": "add", "tests": "assert add(1, 2) == 3"}
)
SUM = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."


@pytest.mark.usefixtures("boxed_programs")
@pytest.mark.parametrize(
    "response, answer, right",
    [
        (SUM, TESTS, True),
        (SUM.replace("+", "-"), TESTS, False),
        ("def add(a, b): return a + b", TESTS, True),
        (SUM, HUMANEVAL, True),
        ("    return a + b", HUMANEVAL, True),
        ("import sys\nsys.exit(0)", TESTS, False),
        ("import os\nos._exit(0)", TESTS, False),
        ("", TESTS, False),
        ("def add(a, b):", TESTS, False),
        (SUM, None, False),
    ],
)
def test_code(response, answer, right):
    assert code(said(response, answer)) is right


def test_the_last_block_counts():
    assert code_of("```py\na\n```\nor\n```python\nb\n```") == "b\n"
    assert code_of("```\nnever closed") == "never closed" and code_of("plain") == "plain"


def test_answers_that_are_no_tests():
    for answer in ("1", "[]", "{}", "{"):
        with pytest.raises(UserError, match="no JSON object with tests"):
            code(said("x", answer))
        with pytest.raises(UserError, match="instruction_id_list"):
            ifeval(said("x", answer))


def test_ifeval():
    try:
        REWARDS.find("ifeval").check()
    except UserError as e:
        pytest.skip(str(e))
    answer = json.dumps(
        {
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "at least", "num_words": 3}],
        }
    )
    assert ifeval(said("one two three four", answer)) == 1
    assert ifeval(said("one, two, three", answer)) == 0 and ifeval(said("one, two, three", answer), share=True) == 0.5
    assert ifeval(said("", answer)) == 0
