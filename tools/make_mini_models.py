"""Makes a mini task and its two models from a seed, with this project's own trainer.

    python tools/make_mini_models.py maze                                     # assets/mini, about six minutes
    python tools/make_mini_models.py text --data path/to/gsm8k/train.jsonl    # runs/text_assets

maze: the teacher learns the maze from walks with detours, the student from shortest walks of some pairs. text: a
tokenizer and both models from question-and-answer lines. Models are stored in bfloat16. Intermediate runs stand in
``--work`` and are resumed when the command is given again.
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
    parser.add_argument("task", choices=["maze", "text"])
    parser.add_argument("--data", type=Path, help="question-and-answer JSON lines (text only)")
    parser.add_argument("--out", type=Path, help="default: assets/mini or runs/text_assets")
    parser.add_argument("--work", type=Path, help="default: runs/<task>_models")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.task == "text") != bool(args.data):
        parser.error("text needs --data" if args.task == "text" else "--data goes with text")
    out = (args.out or Path("assets/mini" if args.task == "maze" else "runs/text_assets")).resolve()
    work = (args.work or Path(f"runs/{args.task}_models")).resolve()
    if args.task == "maze":
        run("tools/make_maze_task.py", "--out", out, "--seed", args.seed)
    else:
        run("tools/make_text_task.py", "--data", args.data.resolve(), "--out", out)
    for name in ("teacher", "student"):
        start, trained = work / "init" / name, work / name
        data = out / (f"sft_{name}.jsonl" if args.task == "maze" else "sft.jsonl")
        run("tools/init_checkpoint.py", "--preset", f"{'mini' if args.task == 'maze' else 'text'}-{name}",
            "--tokenizer", out / "tokenizer", "--seed", args.seed, "--out", start)  # fmt: skip
        settings = [f"run.dir={trained}", f"run.seed={args.seed}", f"models.student={start}", f"models.teacher={start}",
                    f"data.prompts=[{data}]"]  # fmt: skip
        run("-m", "npd_ascend.cli", "run", f"configs/tools/{args.task}_{name}.yaml",
            *(x for s in settings for x in ("--set", s)))  # fmt: skip
        print(convert(trained / "export", out / name, "bfloat16"))


if __name__ == "__main__":
    main()
