"""Builds the mini task: finding the way in a fixed maze that is never shown.

The maze is an 8x8 grid's random spanning tree plus a fifth of the remaining edges. A prompt names two places, the
answer is a legal walk between them, place by place. Nothing in the prompt describes the maze, so the answer must
come from the weights; a wrong turn can be mended by walking on, so what a teacher says after one is meaningful.

    python tools/make_maze_task.py --out assets/mini --seed 0

Writes ``maze.json``, ``tokenizer/`` and, as JSON lines,

- ``sft_teacher.jsonl``: walks with detours over all pairs; ``labels`` has the right next place at every point;
- ``sft_student.jsonl``: shortest walks of some pairs;
- ``prompts_train.jsonl``, ``eval.jsonl``: pairs the student has not seen, for rollouts and for evaluation.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mini_tokenizer

from npd_ascend.data.pangu import ROLES, TURN_END, TURN_START
from npd_ascend.store.atomic import write_bytes, write_json

MAX_DETOUR_HOPS = 32


def place_name(index: int, side: int) -> str:
    """Chess-like name of a cell, for people; its token id says nothing of where it lies."""
    return f"{chr(ord('a') + index % side)}{index // side + 1}"


def make_maze(side: int, rng: random.Random) -> list[list[int]]:
    """Neighbours of each cell, ascending: a random spanning tree of the grid plus a fifth of its other edges."""
    cells = side * side
    edges = [(c, c + 1) for c in range(cells) if c % side < side - 1]
    edges += [(c, c + side) for c in range(cells - side)]
    rng.shuffle(edges)
    root = list(range(cells))

    def find(c: int) -> int:
        while root[c] != c:
            root[c] = root[root[c]]
            c = root[c]
        return c

    kept, spare = [], []
    for a, b in edges:  # Kruskal's algorithm on shuffled edges
        ra, rb = find(a), find(b)
        if ra == rb:
            spare.append((a, b))
        else:
            root[ra] = rb
            kept.append((a, b))
    kept += spare[: len(spare) // 5]
    neighbours: list[list[int]] = [[] for _ in range(cells)]
    for a, b in kept:
        neighbours[a].append(b)
        neighbours[b].append(a)
    return [sorted(n) for n in neighbours]


def distances(neighbours: list[list[int]]) -> list[list[int]]:
    """Hops between all pairs, ``[goal][place]``, by breadth-first search."""
    table = []
    for goal in range(len(neighbours)):
        hops = [-1] * len(neighbours)
        hops[goal] = 0
        queue = deque([goal])
        while queue:
            here = queue.popleft()
            for there in neighbours[here]:
                if hops[there] < 0:
                    hops[there] = hops[here] + 1
                    queue.append(there)
        table.append(hops)
    return table


def next_hop(neighbours: list[list[int]], hops: list[list[int]], here: int, goal: int) -> int:
    """The neighbour on a shortest walk to ``goal``; the first of several, so that the answer is one."""
    return min(neighbours[here], key=lambda there: hops[goal][there])


def shortest_walk(neighbours: list[list[int]], hops: list[list[int]], start: int, goal: int) -> list[int]:
    """Places after ``start`` up to ``goal``."""
    walk = []
    while start != goal:
        start = next_hop(neighbours, hops, start, goal)
        walk.append(start)
    return walk


def detour_walk(
    neighbours: list[list[int]],
    hops: list[list[int]],
    start: int,
    goal: int,
    detour: float,
    jump: float,
    rng: random.Random,
) -> tuple[list[int], list[int]]:
    """A walk with wrong turns, and what the right move would have been at each point.

    Args:
        detour: chance of a random neighbour in place of the right move.
        jump: chance of a place that is no neighbour at all, as a weak student will name some.

    Returns:
        Walk after ``start`` up to ``goal``, and as many right moves.
    """
    walk, labels, here = [], [], start
    while here != goal:
        right = next_hop(neighbours, hops, here, goal)
        labels.append(right)
        draw = rng.random() if len(walk) < MAX_DETOUR_HOPS else 1.0
        if draw < jump:
            here = rng.randrange(len(neighbours))
        elif draw < jump + detour:
            here = rng.choice(neighbours[here])
        else:
            here = right
        walk.append(here)
    return walk, labels


def imperfect(
    out: Path, seed: int, side: int = 8, student_pairs: int = 400, most_detours: float = 0.3, alone: float = 0.25
) -> dict[str, int]:
    """Writes training data for a pair whose teacher has seen imperfect text, for the maze that ``build`` makes.

    The teacher learns walks as they are, wrong turns included, and so gives them some probability; a place that is
    no neighbour alone is replaced by the right one. Both models also see walks without their prompts (``alone`` of
    the rows), so that the likelihood of an answer by itself, which IFD divides by, means something. Prompts are whole
    contexts: train with ``data.template: raw``.

    Args:
        most_detours: each walk's chance of a wrong turn is drawn between 0 and this.

    Returns:
        Rows of each file: ``sft_teacher.jsonl``, ``sft_student.jsonl``.
    """
    rng = random.Random(seed)
    neighbours = make_maze(side, rng)
    hops = distances(neighbours)
    names = [place_name(c, side) for c in range(side * side)]
    pairs = [(a, b) for a in range(len(names)) for b in range(len(names)) if a != b]
    rng.shuffle(pairs)
    rng = random.Random(seed + 1)

    def text(walk: Iterable[int]) -> str:
        return " ".join(names[c] for c in walk)

    def context(pair: tuple[int, int]) -> str:
        return (
            "<s>"
            + "".join(
                f"{TURN_START}{ROLES[role]}{mini_tokenizer.COLON}{said}{TURN_END}"
                for role, said in (("system", ""), ("user", text(pair)))
            )
            + header
        )

    def walked(pair: tuple[int, int], jump: float) -> dict[str, str]:
        walk, right = detour_walk(neighbours, hops, *pair, detour=rng.uniform(0.0, most_detours), jump=jump, rng=rng)
        labels = [
            there if there in neighbours[here] else best
            for here, there, best in zip([pair[0], *walk[:-1]], walk, right, strict=True)
        ]
        return {"response": text(walk), "labels": text(labels)}

    header = f"{TURN_START}{ROLES['assistant']}{mini_tokenizer.COLON}"
    teacher: list[dict[str, str]] = []
    student: list[dict[str, str]] = []
    for pair in pairs:
        teacher.append({"prompt": context(pair), **walked(pair, 0.03)})
        if rng.random() < alone:
            teacher.append({"prompt": f"<s>{header}", **walked(pair, 0.0)})
    for pair in pairs[:student_pairs]:
        walk = text(shortest_walk(neighbours, hops, *pair))
        student.append({"prompt": context(pair), "response": walk})
        if rng.random() < alone:
            student.append({"prompt": f"<s>{header}", "response": walk})
    for name, rows in (("sft_teacher", teacher), ("sft_student", student)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(out / f"{name}.jsonl", lines.encode())
    return {"sft_teacher.jsonl": len(teacher), "sft_student.jsonl": len(student)}


def build(
    out: Path, seed: int, side: int = 8, student_pairs: int = 400, eval_pairs: int = 600, teacher_walks: int = 1
) -> dict[str, int]:
    """Writes the task's files to ``out``.

    Returns:
        Rows of each file.
    """
    rng = random.Random(seed)
    neighbours = make_maze(side, rng)
    hops = distances(neighbours)
    names = [place_name(c, side) for c in range(side * side)]
    pairs = [(a, b) for a in range(len(names)) for b in range(len(names)) if a != b]
    rng.shuffle(pairs)
    student, held_out, rollout = (
        pairs[:student_pairs],
        pairs[student_pairs : student_pairs + eval_pairs],
        pairs[student_pairs + eval_pairs :],
    )

    def text(walk: Iterable[int]) -> str:
        return " ".join(names[c] for c in walk)

    def prompt(pair: tuple[int, int]) -> dict[str, Any]:
        return {"prompt": text(pair), "answer": text(shortest_walk(neighbours, hops, *pair))}

    def noisy(pair: tuple[int, int]) -> dict[str, Any]:
        walk, labels = detour_walk(neighbours, hops, *pair, detour=rng.uniform(0.0, 0.5), jump=0.03, rng=rng)
        return {"prompt": text(pair), "response": text(walk), "labels": text(labels)}

    files = {
        "sft_teacher.jsonl": [noisy(pair) for pair in pairs for _ in range(teacher_walks)],
        "sft_student.jsonl": [
            {"prompt": text(p), "response": text(shortest_walk(neighbours, hops, *p))} for p in student
        ],
        "prompts_train.jsonl": [prompt(p) for p in rollout],
        "eval.jsonl": [prompt(p) for p in held_out],
    }
    for name, rows in files.items():
        write_bytes(out / name, "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_json(
        out / "maze.json",
        {"seed": seed, "neighbours": {names[c]: [names[n] for n in near] for c, near in enumerate(neighbours)}},
    )
    words = list(names)
    rng.shuffle(words)
    mini_tokenizer.save(mini_tokenizer.word_level(words), out / "tokenizer")
    return {name: len(rows) for name, rows in files.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/mini"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=8, help="cells along one side of the maze")
    parser.add_argument("--imperfect", action="store_true", help="training data of the imperfect pair alone")
    args = parser.parse_args()
    made = imperfect if args.imperfect else build
    for name, rows in made(args.out, args.seed, args.side).items():
        print(f"{args.out / name}: {rows} rows")


if __name__ == "__main__":
    main()
