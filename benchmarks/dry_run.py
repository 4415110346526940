"""CPU seconds and peak memory of ``npd run CONFIG --dry-run`` in a fresh process.

    python benchmarks/dry_run.py [CONFIG] [--rounds 9]

The bars are 0.5 s and 150 MB where no engine is loaded. Where Python may not write bytecode
(``PYTHONDONTWRITEBYTECODE``), all of the package is compiled in each process, which is part of the figure.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/mini.yaml")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "npd_ascend.cli",
            "run",
            args.config,
            "--dry-run",
            "--set",
            f"run.dir={folder}/run",
        ]
        for _ in range(args.rounds):
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"{' '.join(command)} failed")
            seconds.append(used.ru_utime + used.ru_stime)
            peaks.append(used.ru_maxrss / 1024)
    print(f"CPU: least {min(seconds):.3f} s, median {statistics.median(seconds):.3f} s; peak {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
