"""Tries doctor, run, refresh, export and serving on small checkpoints of many layouts, sound and damaged.

    python tools/checkpoint_zoo.py --out runs/zoo
    python tools/checkpoint_zoo.py --out runs/zoo --only qwen-base-instruct pickled

Every member is a pair of random checkpoints that is built, looked at by ``npd doctor``, put through ``npd run`` (real
vLLM and MindFormers, two generations) and, from ``export/`` alone, served by vLLM and transformers. A cell of the table
is ``ok``, or ``refused`` where that very refusal is expected; anything else makes the exit code 1.

``zoo.json`` in the output folder holds what is finished; the same command goes on from there, and tries again what went
wrong. ``zoo.md`` is the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from zoo.members import MEMBERS, Member  # noqa: E402
from zoo.models_of import Model  # noqa: E402
from zoo.trial import STAGES, WRONG, Findings, attempt  # noqa: E402

from npd_ascend.store.atomic import write_bytes, write_json  # noqa: E402


def describe(model: Model) -> str:
    """A checkpoint in a few words."""
    words = [
        f"{model.layers} layers",
        "tied" if model.tied else "untied",
        model.dtype,
        f"{model.padding:+d} logits",
        *["sharded"] * model.sharded,
        *["large states"] * model.large,
    ]
    return ", ".join(words + ([f"saved by {model.saver}"] if model.saver != "4" else []))


def row(name: str, member: Member, result: dict[str, Any]) -> str:
    """A line of the table."""
    student, teacher = describe(member.student), describe(member.teacher)
    facts = [
        name,
        member.student.family,
        member.student.tokenizer,
        student,
        "the same" if teacher == student else teacher,
    ]
    return (
        "| "
        + " | ".join(
            [*facts, *(result["cells"][s] for s in STAGES), f"{result['seconds']:.0f}", f"{result['cpu']:.0f}"]
        )
        + " |"
    )


def table(results: dict[str, Any]) -> str:
    """All finished members, and the refusals in full."""
    heads = ["member", "family", "tokenizer", "student", "teacher", *STAGES, "s", "CPU s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) - 2) + "---:|---:|"]
    lines += [row(n, m, results[n]) for n, m in MEMBERS.items() if n in results]
    figures = [r["figures"] for r in results.values()]
    for what, keys in (
        ("vLLM against MindFormers, NLL of an answer", ("gap 0", "gap 1")),
        ("vLLM against transformers, log-prob of a token of the served export", ("served apart",)),
    ):
        if worst := [f[k] for f in figures for k in keys if k in f]:
            lines += ["", f"Largest difference of {what}: {max(worst):.1e} nats."]
    if moved := [f["moved"] for f in figures if "moved" in f]:
        lines += ["", f"A refresh moved the NLL of an answer by {min(moved):.2f} to {max(moved):.2f} nats."]
    if said := [
        (n, results[n]["figures"]["run said"]) for n in MEMBERS if n in results and "run said" in results[n]["figures"]
    ]:
        lines += ["", "| refused | line |", "|---|---|", *(f"| {n} | {line} |" for n, line in said)]
    return "\n".join(lines) + "\n"


def go(name: str, out: Path) -> dict[str, Any]:
    """Tries one member in a folder of its own, which is made anew."""
    folder, started, before = out / name, time.monotonic(), _cpu_seconds()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        found = attempt(MEMBERS[name], folder)
    except Exception as e:  # one member's fault must not end the tour
        found = Findings({**dict.fromkeys(STAGES, ""), STAGES[0]: f"{WRONG}: {type(e).__name__}: {e}"})
    return {
        "cells": found.cells,
        "figures": found.figures,
        "sound": found.sound,
        "seconds": round(time.monotonic() - started, 1),
        "cpu": round(_cpu_seconds() - before, 1),
    }


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="folder of members and results")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(MEMBERS), help="these members")
    parser.add_argument("--list", action="store_true", help="name the members and end")
    args = parser.parse_args()
    names = args.only or list(MEMBERS)
    if args.list:
        print("\n".join(f"{n}: {MEMBERS[n].student.family}, {describe(MEMBERS[n].student)}" for n in names))
        return
    out, started = args.out.resolve(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    results = json.loads((out / "zoo.json").read_text()) if (out / "zoo.json").is_file() else {}
    for i, name in enumerate(names):
        if results.get(name, {}).get("sound"):
            continue
        minutes = (time.monotonic() - started) / 60
        print(f"[{i + 1}/{len(names)}, {minutes:.1f} min] {name}", end=" ", flush=True)
        results[name] = go(name, out)
        cells = ", ".join(f"{stage} {cell}" for stage, cell in results[name]["cells"].items() if cell)
        print(f"{results[name]['seconds']:.0f} s: {cells}", flush=True)
        write_json(out / "zoo.json", results)
        write_bytes(out / "zoo.md", table(results).encode())
    print(table({n: results[n] for n in names}))
    wall, cpu = (sum(results[n][k] for n in names) / 60 for k in ("seconds", "cpu"))
    print(f"{len(names)} members, {wall:.1f} min, {cpu:.1f} CPU min; table: {out / 'zoo.md'}")
    sys.exit(not all(results[n]["sound"] for n in names))


if __name__ == "__main__":
    main()
