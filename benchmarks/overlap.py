"""A run of two generations with and without ``sync.lead``, each side of the overlap on a core of its own.

    python benchmarks/overlap.py CONFIG [--lead 1] [--set KEY=VALUE ...]

Run it with the interpreter of the MindSpore environment, on two cores at least. Training is pinned to one core,
everything else (rollout, annotation, the conductor) to another, in both runs; otherwise two stages that both use all
cores would only take turns. The bar: with lead, wall time at most 1.1 times the longer of the two sides. The first
generation has nothing to overlap with, nor has the last training, so ``limit`` is what the run's own stages allow:
data of generation 0, then the longer of training 0 and (its part before the snapshot + data 1), then training 1.
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
from pathlib import Path

from npd_ascend.ops.environments import Environments
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
        python.parent.mkdir(exist_ok=True)
        python.write_text(WRAPPER.format(python=getattr(Environments.find(), name), data=cores[0], train=cores[1]))
        python.chmod(0o755)
        env[variable] = str(python)
    sets = [f"run.dir={folder}", f"sync.lead={lead}", *given]
    subprocess.run([sys.executable, "-m", "npd_ascend.cli", "run", config, *(x for s in sets for x in ("--set", s))],
                   env=env, check=True, stdout=sys.stderr)
    state = RunDir(folder).read_state()
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "stage"]
    sides = {side: sum(r["seconds"] for r in rows if (r["stage"] == "train") == (side == "train"))
             for side in ("train", "data")}
    return {"wall": state["ended"] - state["started"], **sides,
            "data0": sum(r["seconds"] for r in rows if r["stage"] != "train" and r["generation"] <= 0),
            "data1": sum(r["seconds"] for r in rows if r["stage"] != "train" and r["generation"] == 1),
            "trains": [r["seconds"] for r in rows if r["stage"] == "train"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--lead", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], dest="given")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(args.config, Path(folder) / name / "run", lead, args.given, (cores[0], cores[1]))
                 for name, lead in (("after each other", 0.0), ("overlapped", args.lead))}
    ours = found["overlapped"]
    print(json.dumps({
        "benchmark": "overlap", "config": args.config, "lead": args.lead, "set": args.given,
        "wall": {k: round(v["wall"], 1) for k, v in found.items()},
        "longer side": round(max(ours["train"], ours["data"]), 1),
        "wall / longer side": round(ours["wall"] / max(ours["train"], ours["data"]), 3),
        "stages": {k: {n: v[n] for n in ("data0", "data1", "trains")} for k, v in found.items()},
        "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}))


if __name__ == "__main__":
    main()
