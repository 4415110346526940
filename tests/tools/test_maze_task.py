"""The maze task: a sound maze, true shortest walks, right labels, and the committed files are what a seed makes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import make_maze_task as task
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.tasks.registry import Attempt
from npd_ascend.tasks.rewards.maze import maze

MINI = Path(__file__).resolve().parents[2] / "assets" / "mini"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def naive_distances(neighbours):
    """Floyd-Warshall."""
    n = len(neighbours)
    d = [[0 if a == b else 1 if b in neighbours[a] else 10**6 for b in range(n)] for a in range(n)]
    for k in range(n):
        for a in range(n):
            for b in range(n):
                d[a][b] = min(d[a][b], d[a][k] + d[k][b])
    return d


@settings(max_examples=20)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_maze_and_walks(side, seed):
    rng = random.Random(seed)
    neighbours = task.make_maze(side, rng)
    cells, edges = side * side, sum(map(len, neighbours)) // 2
    grid_edges = 2 * side * (side - 1)
    assert edges == cells - 1 + (grid_edges - cells + 1) // 5
    for a, near in enumerate(neighbours):
        for b in near:
            assert a in neighbours[b] and abs(a // side - b // side) + abs(a % side - b % side) == 1
    hops, naive = task.distances(neighbours), naive_distances(neighbours)
    assert hops == naive and max(map(max, naive)) < 10**6
    start, goal = rng.sample(range(cells), 2)
    walk = task.shortest_walk(neighbours, hops, start, goal)
    assert len(walk) == naive[start][goal] and walk[-1] == goal
    walk, labels = task.detour_walk(neighbours, hops, start, goal, 0.4, 0.05, rng)
    assert walk[-1] == goal and goal not in walk[:-1] and len(walk) == len(labels) <= task.MAX_DETOUR_HOPS + cells
    for here, right in zip([start, *walk], labels, strict=False):
        assert right in neighbours[here] and naive[right][goal] == naive[here][goal] - 1


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("maze")
    task.build(out, seed=0)
    return out


def test_committed_files_are_what_the_seed_makes(built):
    names = [p.relative_to(built) for p in sorted(built.rglob("*")) if p.is_file() and p.name != "tokenizer.json"]
    assert len(names) == 6
    for name in names:
        assert (built / name).read_bytes() == (MINI / name).read_bytes(), name
    # The tokenizers library may lay its JSON out anew from one version to the next.
    ours, committed = (json.loads((f / "tokenizer" / "tokenizer.json").read_text()) for f in (built, MINI))
    assert ours["model"]["vocab"] == committed["model"]["vocab"]
    assert sum(p.stat().st_size for p in built.rglob("*") if p.is_file()) < 1.5e6


def test_parts_do_not_overlap_and_answers_are_right(built):
    student, rollout, held_out = (read(built / f) for f in ("sft_student.jsonl", "prompts_train.jsonl", "eval.jsonl"))
    sets = [{r["prompt"] for r in rows} for rows in (student, rollout, held_out)]
    assert [len(s) for s in sets] == [400, 3032, 600] and len(set.union(*sets)) == 64 * 63
    data = json.loads((built / "maze.json").read_text())
    for row in [*student, *rollout, *held_out]:
        answer = row.get("answer") or row["response"]
        assert maze(Attempt(row["prompt"], answer, None), data)
    teacher = read(built / "sft_teacher.jsonl")
    assert len({r["prompt"] for r in teacher}) == 64 * 63
    assert all(len(r["response"].split()) == len(r["labels"].split()) for r in teacher)


def test_token_ids_carry_no_geometry(built):
    vocab = json.loads((built / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    data = json.loads((built / "maze.json").read_text())["neighbours"]
    near = [abs(vocab[a] - vocab[b]) for a, row in data.items() for b in row]
    assert 15 < sum(near) / len(near) < 28  # 21.7 for random ids; a few when they follow the grid


def test_imperfect_walks(tmp_path):
    task.imperfect(tmp_path, seed=0)
    data = json.loads((MINI / "maze.json").read_text())["neighbours"]
    rows = read(tmp_path / "sft_teacher.jsonl")
    alone = [r for r in rows if "用户" not in r["prompt"]]
    assert len(rows) - len(alone) == 64 * 63 and 0.2 < len(alone) / 4032 < 0.3
    wrong = total = 0
    for row in rows:
        start = row["prompt"].split("：")[2].split()[0] if "用户" in row["prompt"] else None
        walk, labels = row["response"].split(), row["labels"].split()
        assert len(walk) == len(labels)
        for i, (here, label) in enumerate(zip([start, *walk], labels, strict=False)):
            if here is not None:
                assert label in data[here]
                total, wrong = total + 1, wrong + (label != walk[i])
    assert 0.01 < wrong / total < 0.05  # only places that are no neighbours are put right
    student = read(tmp_path / "sft_student.jsonl")
    prompts = {r["prompt"] for r in read(MINI / "sft_student.jsonl")}
    assert len({r["prompt"] for r in student}) == len(prompts) + 1
    assert all(any(f"：{p}[" in r["prompt"] for p in prompts) for r in student[:3] if "用户" in r["prompt"])


def test_contexts_are_what_the_template_makes(tmp_path):
    from npd_ascend.data.template import Template
    from npd_ascend.data.tokenizer import load_tokenizer

    task.imperfect(tmp_path, seed=0)
    tokenizer = load_tokenizer(MINI / "tokenizer", False)
    chat, raw = Template(tokenizer, "chat", [4]), Template(tokenizer, "raw", [4])
    rows = read(tmp_path / "sft_student.jsonl")[:20]
    for row in rows:
        ids = raw.prompts([row["prompt"]])[0]
        if "用户" in row["prompt"]:
            text = row["prompt"].split("用户：")[1].split("[")[0]
            assert ids == chat.prompts(chat.render([[{"role": "user", "content": text}]]))[0]
        else:
            assert ids == chat.header_ids
