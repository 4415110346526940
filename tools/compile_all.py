"""Compiles every configuration for NPUs on MindSpore's Ascend backend and writes the table of docs/ascend.md.

    python tools/compile_all.py --out runs/compile_all [--room GB] [CONFIG ...]

Run it with any interpreter of the package; it needs the MindSpore environment, and CANN or gcc and binutils. Layers
are as many as fit into ``--room`` gigabytes of host memory; figures of deeper models are extrapolated and marked.
Graphs that configurations share are compiled once, and what is compiled stays in ``--out``, so that the same command
goes on where it was stopped. Fails when a configuration does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from npd_ascend.config import Config, load_config
from npd_ascend.environments import Environments
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.ascend.cann import Cann
from npd_ascend.ops.ascend.check import compile_deep
from npd_ascend.ops.ascend.graphs import Graph, graphs
from npd_ascend.ops.ascend.verdict import as_json, judge
from npd_ascend.ops.doctor.steps import Steps
from npd_ascend.ops.plan.devices import DEFAULT_NPU, find_npu
from npd_ascend.ops.plan.memory import annotate_memory, train_memory
from npd_ascend.out_of_memory import free_bytes
from npd_ascend.store.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
HEAD = (
    "| configuration | graph | layers | planned, GB | `npd plan`, GB | aclnn | legacy acl | host | without kernel "
    "| collectives | s |\n|---|---|---|---:|---:|---:|---:|---:|---:|---|---:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path, help="default: all of configs/ with target: ascend")
    parser.add_argument("--out", type=Path, default=Path("runs/compile_all"), help="folder of results and table.md")
    parser.add_argument("--room", type=float, help="GB of host memory; default: 80 %% of what is free")
    args = parser.parse_args()
    files = args.configs or sorted(p for p in (ROOT / "configs").glob("*.yaml") if "target: ascend" in p.read_text())
    room = args.room * 1e9 if args.room else 0.8 * free_bytes()
    rows, failed = [HEAD], False
    for file in files:
        config = load_config(file)
        for graph in graphs(config):
            found, errors = compiled(graph, args.out, room)
            failed = failed or bool(errors)
            rows.append(row(file.stem, config, graph, found))
            print(rows[-1], *errors, sep="\n  ", flush=True)
            (args.out / "table.md").write_text("\n".join(rows) + "\n")
    if failed:
        raise SystemExit("some graphs failed, see above")


def compiled(graph: Graph, out: Path, room: float) -> tuple[dict[str, Any], list[str]]:
    """JSON of a graph, from an earlier run of this tool where it is there; and its errors."""
    name = hashlib.sha256(graph.key.encode()).hexdigest()[:16]
    path = out / "graphs" / f"{name}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        return stored["graph"], stored["errors"]
    python = Environments.find().mindspore
    with Steps() as steps:
        made = compile_deep(graph, python, Cann.find(python), room, steps.begin)
    errors = [f.what for f in judge(made) if f.level == "error"]
    write_json(path, {"graph": as_json(made), "errors": errors})
    return as_json(made), errors


def row(name: str, config: Config, graph: Graph, found: dict[str, Any]) -> str:
    """A line of the table."""
    if found["failed"]:
        return f"| {name} | {graph.stage} | {graph.layers} | does not compile: {found['failed']} |"
    mark = "~" if found["extrapolated"] else ""
    layers = f"{graph.layers}" + (f" (from {' and '.join(map(str, found['compiled_layers']))})" if mark else "")
    rank = f", rank {graph.rank} of {graph.size}" if graph.size > 1 else ""
    kinds = {
        k: sum(sum(p["kernels"].get(k, {}).values()) for p in found["phases"].values())
        for k in ("aclnn", "acl", "host", "none")
    }
    counts = " | ".join(f"{mark}{kinds[k]}" if kinds[k] else "0" for k in kinds)
    return (
        f"| {name} | {graph.stage}{rank} | {layers} | {mark}{found['planned_bytes'] / 2**30:.1f} | "
        f"{planned(config, graph) / 2**30:.1f} | {counts} | {collectives(found)} | {found['seconds']:.0f} |"
    )


def planned(config: Config, graph: Graph) -> float:
    """What ``npd plan`` says of the same stage."""
    npu, spec = find_npu(DEFAULT_NPU), ModelSpec.from_config(graph.config, {}, graph.model)
    if graph.stage == "train":
        return train_memory(config, spec, npu, recompute=config.train.recompute).needed
    return annotate_memory(config, spec, npu, graph.settings["tensor_parallel"]).needed


def collectives(found: dict[str, Any]) -> str:
    """How many of each kind in a micro-batch and a step, with their bytes together."""
    said = []
    for phase in ("forward", "head with top-k", "micro-batch", "step"):
        kinds: dict[str, list[int]] = {}
        for c in found["phases"].get(phase, {}).get("collectives", []):
            total = kinds.setdefault(c["kind"], [0, 0])
            total[0] += c["count"]
            total[1] += c["count"] * c["bytes"]
        if kinds:
            said.append(f"{phase}: " + ", ".join(f"{n} {k} ({b / 2**20:.0f} MB)" for k, (n, b) in kinds.items()))
    return "; ".join(said) or "none"


if __name__ == "__main__":
    main()
