"""Makes the mini task and its two models from a seed, with this project's own trainer.

    python tools/make_mini_models.py --out assets/mini        # about five minutes on two CPU cores

The teacher learns the maze from walks with detours, the student from shortest walks of a few hundred pairs; both are
stored in bfloat16. Intermediate runs stand in ``--work`` and are resumed when the command is given again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from npd_ascend.models.convert import convert

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object) -> None:
    """A step of the recipe; stops the recipe when it fails."""
    print("+", *command, flush=True)
    code = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/mini"))
    parser.add_argument("--work", type=Path, default=Path("runs/mini_models"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run("tools/make_maze_task.py", "--out", args.out, "--seed", args.seed)
    for name in ("teacher", "student"):
        start, trained = args.work / "init" / name, args.work / name
        run("tools/init_checkpoint.py", "--preset", f"mini-{name}", "--tokenizer", args.out / "tokenizer", "--seed",
            args.seed, "--out", start)  # fmt: skip
        run("-m", "npd_ascend.cli", "run", f"configs/tools/maze_{name}.yaml", "--set", f"run.dir={trained}", "--set",
            f"run.seed={args.seed}", "--set", f"models.student={start}", "--set", f"models.teacher={start}", "--set",
            f"data.prompts=[{args.out / f'sft_{name}.jsonl'}]")  # fmt: skip
        print(convert(trained / "export", args.out / name, "bfloat16"))


if __name__ == "__main__":
    main()
