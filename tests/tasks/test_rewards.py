"""Rewards that need nothing, against hand-made cases."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import REWARDS, Attempt, Checker, Reward, load_data
from npd_ascend.tasks.rewards.choice import choice, letter
from npd_ascend.tasks.rewards.exact import exact
from npd_ascend.tasks.rewards.length import length
from npd_ascend.tasks.rewards.maze import maze
from npd_ascend.tasks.rewards.number import final_number, number
from npd_ascend.tasks.rewards.rules import rules

LINE = {"neighbours": {"a": ["b"], "b": ["a", "c"], "c": ["b", "d"], "d": ["c"], "x": []}}


def test_exact():
    assert exact(Attempt("q", " 42\n", "42"))
    assert not exact(Attempt("q", "4 2", "42"))
    assert not exact(Attempt("q", "", None))


@pytest.mark.parametrize("text, value", [
    ("She sold 48/2 = <<48/2=24>>24.\n#### 72", "72"), ("#### 1,234,567.50", "1234567.5"), ("#### $ 18", "18"),
    ("#### -3", "-3"), ("#### 5 apples and 7", "5"), ("#### none", None), ("so 3 and then 4", "4"),
    ("It costs $1,000.", "1000"), ("that is 1,000,", "1000"), ("12,34", "34"), ("3.50%", "3.5"), ("-.5", "-.5"),
    ("x = −7", "-7"), (r"\boxed{7}", "7"), (r"first \boxed{1}, then \boxed{\frac{3}{4}} of 9", "0.75"),
    (r"\boxed{\text{about } \$1{,}200}", "1200"), (r"\boxed{12", "12"), ("1/0", None), ("", None), ("none", None),
    ("the year 2024.", "2024"), ("10-3 = 7", "7"), ("#### 3 #### 4", "4")])  # fmt: skip
def test_final_number(text, value):
    assert final_number(text) == (None if value is None else Decimal(value))


def test_number():
    assert number(Attempt("q", "It is 72.0 clips", "bla\n#### 72"))
    assert not number(Attempt("q", "It is 7", "#### 72"))
    assert not number(Attempt("q", "no idea", "no idea"))
    assert not number(Attempt("q", "7", None))


DRESSES = ["{}", "${:,}", "{:,}.00", "so: {}.", "\\boxed{{{:,}}}", "1 #### {}"]


@given(st.integers(-(10**12), 10**12), st.sampled_from(DRESSES))
def test_any_integer_is_found_in_any_dress(value, dress):
    text = dress.format(value) if value >= 0 or not dress.startswith("$") else f"-${-value:,}"
    assert final_number(text) == value


@pytest.mark.parametrize(
    "response, right",
    [
        ("b c d", True),
        ("b a b c d", True),
        ("b c d c d", True),
        ("", False),
        ("b c", False),
        ("c d", False),
        ("b c d e", False),
        ("a b c d", False),
        ("b d", False),
        ("b a " * 4 + "b c d", True),
        ("b a " * 5 + "b c d", False),
    ],
)
def test_maze(response, right):
    assert maze(Attempt("a d", response, None), LINE) is right  # distance 3: up to 12 hops


def test_maze_corner_cases():
    assert maze(Attempt("a a", "", None), LINE)
    assert not maze(Attempt("a x", "b a", None), LINE)
    for data in (None, {}, {"neighbours": []}):
        with pytest.raises(UserError, match="checker_data"):
            maze(Attempt("a d", "b", None), data)
    for prompt in ("a", "a d d", "a q"):
        with pytest.raises(UserError, match="two places"):
            maze(Attempt(prompt, "b", None), LINE)


CHEAP = ("choice", "exact", "length", "maze", "number", "rules")


@settings(max_examples=200)
@given(st.sampled_from(CHEAP), st.text(max_size=60), st.text(max_size=30) | st.none())
def test_no_response_makes_a_reward_fail(name, response, answer):
    if name == "rules" and answer is not None:
        answer = json.dumps({"any": [answer], "all": answer, "words": answer, "number": answer, "ends": answer})
    options = {"limit": 8, "buffer": 4} if name == "length" else {}
    value = REWARDS.find(name).with_options(options, "reward.parts")(Attempt("a d", response, answer, 5), LINE)
    assert -1 <= value <= 1


@pytest.mark.parametrize(
    "response, right",
    [
        ("B", "B"), ("The answer is (C).", "C"), ("答案是D。", "D"), ("A dog is an animal, so\nB", "B"),
        (r"So \boxed{\text{A}}", "A"), (r"A is wrong. Answer: B. No, answer: C", "C"), ("B. Because A is wrong", "B"),
        ("", None), ("no idea", None), ("A or B or C I cannot say which", None), ("the answer is a dog", None),
    ],
)  # fmt: skip
def test_letter(response, right):
    assert letter(response) == right
    assert choice(Attempt("q", response, right or "A")) is (right is not None)


def test_choice_without_an_answer():
    assert not choice(Attempt("q", "A", None))


@pytest.mark.parametrize("tokens, cut, value", [(0, False, 0), (80, False, 0), (90, False, -0.5), (100, False, -1),
                                                (500, False, -1), (3, True, -1)])  # fmt: skip
def test_length_is_a_ramp(tokens, cut, value):
    assert length(Attempt("q", "", None, tokens, cut), limit=100, buffer=20) == value


def test_options():
    reward = REWARDS.find("length")
    with pytest.raises(UserError, match="needs the option 'buffer'"):
        reward.with_options({"limit": 3}, "reward.parts")
    with pytest.raises(UserError, match="no option 'limits'; it takes limit, buffer"):
        reward.with_options({"limits": 3}, "reward.parts")
    with pytest.raises(UserError, match="it takes none"):
        REWARDS.find("exact").with_options({"x": 1}, "reward.parts")


@pytest.mark.parametrize(
    "function, why", [(lambda a, d: 1 / 0, "raised ZeroDivisionError"), (lambda a, d: "good", "raised ValueError"),
                      (lambda a, d: float("nan"), "no finite number")])  # fmt: skip
def test_a_reward_of_ones_own_that_fails(function, why):
    with pytest.raises(UserError, match=why + ".*prompt 'a', response 'b'"):
        Reward.of(function).with_options({}, "reward.parts")(Attempt("a", "b", None), None)


def test_checker_counts_ones():
    assert Checker("exact", None)(Attempt("q", "1", "1")) and not Checker("exact", None)(Attempt("q", "1", "2"))
    with pytest.raises(UserError, match="evaluate.checker 'length'|needs the option"):
        Checker("length", None)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="exact, .*number"):
        REWARDS.find("vibes")
    assert load_data(None, "key") is None
    with pytest.raises(UserError, match="key .*cannot be read"):
        load_data(tmp_path / "gone.json", "key")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_data(tmp_path / "bad.json", "key")


@pytest.mark.parametrize(
    "rule, response, right",
    [
        ({"any": ["Paris", "Lyon"]}, "It is paris.", True),
        ({"any": ["Paris"]}, "It is Rome.", False),
        ({"all": ["salt", "sea"]}, "Seawater is salty.", True),
        ({"all": ["salt", "sea"]}, "Salt only", False),
        ({"all": "salt"}, "no", False),
        ({"words": ["H"]}, "Its symbol is H.", True),
        ({"words": ["H"]}, "He, not h", False),
        ({"number": "15"}, "7 + 8 is 15.", True),
        ({"number": 15}, "15 or 16", False),
        ({"number": "15"}, "none", False),
        ({"max_words": 3}, "one two three", True),
        ({"max_words": 3}, "one two three four", False),
        ({"max_words": 3}, "  ", False),
        ({"min_commas": 2}, "a, b, c", True),
        ({"min_commas": 2}, "a, b", False),
        ({"ends": "?"}, "Is it? \n", True),
        ({"ends": "?"}, "It is.", False),
        ({}, "", True),
        ({"any": ["a"], "max_words": 1}, "a b", False),
    ],
)
def test_rules(rule, response, right):
    assert rules(Attempt("q", response, json.dumps(rule))) is right


def test_rules_that_are_none():
    assert not rules(Attempt("q", "a", None))
    for answer in ("Paris", "[1]", '{"contains": "a"}', '{"max_words": "few"}', '{"min_commas": null}'):
        with pytest.raises(UserError, match="no JSON object of rules"):
            rules(Attempt("q", "a", answer))
