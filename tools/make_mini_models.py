"""Makes a mini task and its two models from a seed, with this project's own trainer.

    python tools/make_mini_models.py maze                                     # assets/mini, about six minutes
    python tools/make_mini_models.py imperfect                                # assets/mini/imperfect
    python tools/make_mini_models.py chain                                    # runs/chain_assets
    python tools/make_mini_models.py text --data path/to/gsm8k/train.jsonl    # runs/text_assets

maze: the teacher learns the maze from walks with detours, the student from shortest walks of some pairs. imperfect: the
same maze, but the teacher learns the walks as they are, wrong turns included (docs/study/miniature.md). chain: running
sums, where no mistake can be mended. text: a tokenizer and both models from question-and-answer lines. Models are
stored in bfloat16. Intermediate runs stand in ``--work`` and are resumed when the command is given again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from npd_ascend.models.convert import convert

ROOT = Path(__file__).resolve().parents[1]
_OUT = {"maze": "assets/mini", "imperfect": "assets/mini/imperfect"}


def run(*command: object) -> None:
    """A step of the recipe; stops the recipe when it fails."""
    print("+", *command, flush=True)
    code = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=["maze", "imperfect", "chain", "text"])
    parser.add_argument("--data", type=Path, help="question-and-answer JSON lines (text only)")
    parser.add_argument("--out", type=Path, help="default: assets/mini, assets/mini/imperfect, runs/<task>_assets")
    parser.add_argument("--work", type=Path, help="default: runs/<task>_models")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.task == "text") != bool(args.data):
        parser.error("text needs --data" if args.task == "text" else "--data goes with text")
    out = (args.out or Path(_OUT.get(args.task, f"runs/{args.task}_assets"))).resolve()
    work = (args.work or Path(f"runs/{args.task}_models")).resolve()
    tokenizer, preset, extra = out / "tokenizer", "text" if args.task == "text" else "mini", []
    if args.task == "text":
        run("tools/make_text_task.py", "--data", args.data.resolve(), "--out", out)
    elif args.task == "chain":
        run("tools/make_chain_task.py", "--out", out, "--seed", args.seed)
    else:
        imperfect = args.task == "imperfect"
        run("tools/make_maze_task.py", "--out", out, "--seed", args.seed, *(["--imperfect"] if imperfect else []))
        if imperfect:
            tokenizer, extra = ROOT / "assets" / "mini" / "tokenizer", ["data.template=raw"]
    for name in ("teacher", "student"):
        start, trained = work / "init" / name, work / name
        data = out / ("sft.jsonl" if args.task == "text" else f"sft_{name}.jsonl")
        run(
            "tools/init_checkpoint.py",
            "--preset",
            f"{preset}-{name}",
            "--tokenizer",
            tokenizer,
            "--seed",
            args.seed,
            "--out",
            start,
        )
        settings = [
            f"run.dir={trained}",
            f"run.seed={args.seed}",
            f"models.student={start}",
            f"models.teacher={start}",
            f"data.prompts=[{data}]",
            *extra,
        ]
        if args.task == "chain":
            settings.append("data.labels_field=null")
        run(
            "-m",
            "npd_ascend.cli",
            "run",
            f"configs/tools/{'text' if args.task == 'text' else 'maze'}_{name}.yaml",
            *(x for s in settings for x in ("--set", s)),
        )
        print(convert(trained / "export", out / name, "bfloat16"))


if __name__ == "__main__":
    main()
