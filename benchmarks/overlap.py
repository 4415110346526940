"""A run of two generations with ``sync.lead``, each side of the overlap on a core of its own.

    python benchmarks/overlap.py CONFIG --lead EPOCHS [--set KEY=VALUE ...] [--serial]

Run it with the interpreter of the MindSpore environment, on two cores at least. Training is pinned to one core,
everything else (rollout, annotation, the executor) to another; otherwise two stages that both use all
cores would only take turns. The first generation's data and the last training have nothing to overlap with, so what
is judged first is the time between them: from the start of training 0 to that of training 1, in which the data of
generation 1 are made, over the longer of the two sides. Take a lead of (almost) the whole generation, else the part
before the snapshot runs alone. The second figure is the whole run's wall time over the sum of its longest stage. Bar
of both: 1.1. ``--serial`` runs the same without lead as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from npd_ascend.environments import Environments
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

WRAPPER = """#!/bin/bash
case "$*" in *-train.json*) core={train};; *) core={data};; esac
exec taskset -c $core {python} "$@"
"""


def run(config: str, folder: Path, lead: float, given: list[str], cores: tuple[int, int]) -> dict:
    """Wall seconds, and the spans of its stages in seconds from the start."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, variable in (("mindspore", "NPD_MINDSPORE_PYTHON"), ("rollout", "NPD_ROLLOUT_PYTHON")):
        python = folder.parent / name / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(WRAPPER.format(python=getattr(Environments.find(), name), data=cores[0], train=cores[1]))
        python.chmod(0o755)
        env[variable] = str(python)
    sets = [f"run.dir={folder}", f"sync.lead={lead}", *given]
    subprocess.run(
        [sys.executable, "-m", "npd_ascend.cli", "run", config, *(x for s in sets for x in ("--set", s))],
        env=env,
        check=True,
        stdout=sys.stderr,
    )
    state = RunDir(folder).read_state()
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "stage"]
    train = [r for r in rows if r["stage"] == "train"]
    data = [
        r
        for r in rows
        if r["stage"] in ("rollout", "annotate_teacher", "annotate_student", "select", "evaluate")
        and r["generation"] == 1
        and r["time"] - r["seconds"] < train[1]["time"] - train[1]["seconds"]
    ]
    window = (train[1]["time"] - train[1]["seconds"]) - (train[0]["time"] - train[0]["seconds"])
    totals: Counter[str] = Counter()
    for r in rows:
        totals["annotate" if r["stage"].startswith("annotate") else r["stage"]] += r["seconds"]
    sides = {"train": train[0]["seconds"], "data": sum(r["seconds"] for r in data)}
    return {
        "wall": state["ended"] - state["started"],
        "window": window,
        **sides,
        "longest stage": max(totals.values()),
        "start and compile of training": train[0].get("start", 0.0) + train[0].get("compile", 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--lead", type=float, default=1.0)
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="given")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: run(args.config, Path(folder) / name / "run", lead, args.given, (cores[0], cores[1]))
            for name, lead in (("serial", 0.0), ("overlapped", args.lead))[not args.serial :]
        }
    ours = found["overlapped"]
    longer = max(ours["train"], ours["data"])
    print(
        json.dumps(
            {
                "benchmark": "overlap",
                "config": args.config,
                "lead": args.lead,
                "set": args.given,
                "seconds": {name: {k: round(v, 1) for k, v in one.items()} for name, one in found.items()},
                "longer side": round(longer, 1),
                "window / longer side": round(ours["window"] / longer, 3),
                "wall / longest stage": round(ours["wall"] / ours["longest stage"], 3),
                "window / both sides": round(ours["window"] / (ours["train"] + ours["data"]), 3),
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


if __name__ == "__main__":
    main()
