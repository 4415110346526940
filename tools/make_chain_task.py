"""Builds the counter-example task: running sums, where an early mistake cannot be mended.

    python tools/make_chain_task.py --out runs/chain_assets --seed 0

A prompt is a row of digits, the answer their running sums modulo 10, digit by digit. One wrong sum makes every later
one wrong, whatever follows: after a student's mistake even a perfect teacher, which goes on from the wrong sum, has
nothing to say that would save the answer. Right is only the whole answer.

Writes ``tokenizer/`` and, as JSON lines of ``prompt``, ``response`` and ``answer``: ``sft_teacher.jsonl`` (many rows),
``sft_student.jsonl`` (some), ``prompts_train.jsonl`` and ``eval.jsonl``. No row is in two files.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import accumulate
from pathlib import Path

import mini_tokenizer

from npd_ascend.store.atomic import write_bytes

ROWS = {"sft_teacher": 6000, "sft_student": 600, "prompts_train": 3000, "eval": 600}


def running_sums(digits: list[int]) -> list[int]:
    """Sums of the first 1, 2, ... digits, modulo 10."""
    return [total % 10 for total in accumulate(digits)]


def build(out: Path, seed: int, length: int = 12, rows: dict[str, int] | None = None) -> dict[str, int]:
    """Writes the task's files to ``out``.

    Returns:
        Rows of each file.
    """
    rng, rows = random.Random(seed), rows or ROWS
    seen: set[tuple[int, ...]] = set()
    while len(seen) < sum(rows.values()):
        seen.add(tuple(rng.randrange(10) for _ in range(length)))
    rest = sorted(seen)
    rng.shuffle(rest)
    for name, count in rows.items():
        part, rest = rest[:count], rest[count:]
        lines = []
        for digits in part:
            answer = " ".join(map(str, running_sums(list(digits))))
            lines.append(json.dumps({"prompt": " ".join(map(str, digits)), "response": answer, "answer": answer}))
        write_bytes(out / f"{name}.jsonl", "".join(line + "\n" for line in lines).encode())
    mini_tokenizer.save(mini_tokenizer.word_level([str(d) for d in range(10)]), out / "tokenizer")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/chain_assets"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=12, help="digits a prompt")
    args = parser.parse_args()
    for name, count in build(args.out, args.seed, args.length).items():
        print(f"{args.out / name}.jsonl: {count} rows")


if __name__ == "__main__":
    main()
