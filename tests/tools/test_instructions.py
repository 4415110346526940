"""Generated instructions: their own answers keep their rules, files are disjoint, nothing depends on anything else."""

from __future__ import annotations

import json
import random
from collections import Counter

import make_instructions as task
import pytest
import yaml

from npd_ascend.tasks.registry import Attempt
from npd_ascend.tasks.rewards.rules import rules


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructions")
    counts = task.build(folder)
    found = {name: [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in task.FILES}
    assert counts == {name: len(part) for name, part in found.items()}
    return found


def test_reference_answers_keep_their_rules(rows):
    broken = [r for part in rows.values() for r in part if not rules(Attempt(r["prompt"], r["response"], r["answer"]))]
    assert not broken


def test_an_answer_to_something_else_breaks_most_rules(rows):
    part = rows["prompts.jsonl"]
    others = part[len(part) // 2 :] + part[: len(part) // 2]
    kinds = ("capital", "contains", "opposite", "symbol", "replace", "sum", "define")
    wrong = [
        not rules(Attempt(r["prompt"], o["response"], r["answer"]))
        for r, o in zip(part, others, strict=True)
        if r["kind"] in kinds
    ]
    assert sum(wrong) > 0.9 * len(wrong)


def test_parts(rows):
    everything = [r["prompt"] for part in rows.values() for r in part]
    assert len(set(everything)) == len(everything) > 1500
    sizes = [len(rows[name]) for name in task.FILES]
    assert [size / len(everything) for size in sizes] == pytest.approx(task.SHARES, abs=0.02)
    kinds = [set(Counter(r["kind"] for r in part)) for part in rows.values()]
    assert kinds[0] == kinds[1] == kinds[2] and len(kinds[0]) >= 12


def test_what_is_asked_about_is_in_one_file_only(rows):
    content = yaml.safe_load(task.CONTENT.read_text())
    for country, city in content["capitals"].items():
        holding = [
            name
            for name, part in rows.items()
            if any(r["kind"] == "capital" and city in r["response"] and f" {country} " in r["response"] for r in part)
        ]
        assert len(holding) == 1, country
    for entry in content["topics"]:
        topic, _, definition = task.split_fields(entry)
        assert sum(any(r["response"] == definition for r in part) for part in rows.values()) == 1, topic


def test_parts_keep_together_what_belongs_together():
    made = [task.Row("k", about, f"{about}{i}", "", {}) for about in "abcdefghij" for i in range(3)]
    parts = task.parts(made, random.Random(1))
    assert [len({r.about for r in part}) for part in parts] == [6, 3, 1] and [len(part) for part in parts] == [18, 9, 3]


def test_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        task.build(tmp_path / name, seed)
    a, b, c = ([(tmp_path / n / f).read_bytes() for f in task.FILES] for n in "abc")
    assert a == b and a != c


def test_content():
    """Entries are well formed, definitions are short and show one of their words."""
    content = yaml.safe_load(task.CONTENT.read_text())
    for entry in content["topics"]:
        topic, keys, definition = task.split_fields(entry)
        assert len(definition.split()) <= 30 and definition.endswith("."), topic
        assert any(key.lower() in definition.lower() for key in task.split_keys(keys)), topic
    assert all(len(task.split_fields(e)) == 2 for name in ("verbs", "reasons") for e in content[name])
    assert all(len(members) == 3 for members in content["lists"].values())
