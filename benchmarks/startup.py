"""Where the time of a finished run went: start-up, compilation, work on data, and the executor itself.

    python benchmarks/startup.py RUN_DIR

Reads ``metrics.jsonl`` and ``run.json``. ``busy`` is work on data; ``start`` and
``compile`` are what imports and graphs took, where a stage tells. ``executor`` is wall time in
which no stage had a process or an engine at work: less than 5 % of a run is the bar. The run must have gone through
in one go.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from npd_ascend.report.collect import collect
from npd_ascend.store.metrics import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = collect(parser.parse_args().run)
    print("| stage | generation | seconds | start | compile | busy | the rest |\n|---|---:|---:|---:|---:|---:|---:|")
    for row in read_metrics(run.root / "metrics.jsonl"):
        if row["kind"] == "stage":
            start, compiled = row.get("start", 0.0), row.get("compile", 0.0)
            rest = row["seconds"] - start - compiled - row["busy"]
            print(
                f"| {row['stage']} | {max(row['generation'], 0)} | {row['seconds']:.1f} | {start:.1f} | "
                f"{compiled:.1f} | {row['busy']:.1f} | {rest:.1f} |"
            )
    wall, inside = run.state["ended"] - run.state["started"], run.wall_seconds() or 0.0
    print(f"wall {wall:.1f} s, in stages {inside:.1f} s, executor {wall - inside:.1f} s = {1 - inside / wall:.1%}")


if __name__ == "__main__":
    main()
