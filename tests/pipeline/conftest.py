"""Tiny real models and task for whole runs: seconds a stage, nothing replaced."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, engines):
    """Folder with maze task, teacher and student of random weights, and ``config(**)`` to make configurations."""
    folder = tmp_path_factory.mktemp("tiny")

    def tool(name, *args):
        subprocess.run(
            [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, args)], check=True, capture_output=True
        )

    tool("make_maze_task", "--out", folder / "task", "--seed", 0)
    for name, seed, layers in (("teacher", 1, 3), ("student", 2, 2)):
        tool("init_checkpoint", "--preset", "mini-student", "--hidden-size", 64, "--intermediate-size", 64,
             "--num-hidden-layers", layers, "--num-attention-heads", 2, "--num-key-value-heads", 1, "--seed", seed,
             "--tokenizer", folder / "task" / "tokenizer", "--out", folder / name)  # fmt: skip
    return Tiny(folder)


class Tiny:
    """See the fixture."""

    def __init__(self, folder: Path):
        self.folder = folder

    def config(self, run: Path, /, **changes: dict) -> Path:
        """Writes a configuration of two short generations into ``run``'s parent; ``changes`` by section."""
        f = self.folder
        tree: dict = {
            "run": {"dir": str(run), "seed": 1},
            "models": {"teacher": str(f / "teacher"), "student": str(f / "student")},
            "data": {"prompts": [str(f / "task" / "prompts_train.jsonl")], "limit": 24, "answer_field": "answer"},
            "rollout": {"max_new_tokens": 24, "samples": 1, "shard_size": 6, "max_num_seqs": 8},
            "annotate": {"row_length": 128, "micro_batch": 2, "k": 4},
            "select": {"lower": None, "upper": None},
            "pack": {"row_length": 128},
            "train": {"epochs": 2, "lr": 1e-3, "min_lr": 1e-4, "global_batch": 2, "micro_batch": 2,
                      "checkpoint_every": 2, "keep_checkpoints": 20,
                      "vocab_chunk_rows": 64},
            "sync": {"refreshes": 1, "probe_samples": 4, "lag_every": 3},
            "evaluate": {"prompts": [str(f / "task" / "eval.jsonl")], "limit": 8, "checker": "maze",
                         "checker_data": str(f / "task" / "maze.json")},
        }  # fmt: skip
        for section, values in changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        path = run.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(tree))
        return path

    def start(self, config: Path, *args: str, **popen) -> subprocess.Popen:
        """``npd run CONFIG ...`` as a process."""
        return subprocess.Popen([sys.executable, "-m", "npd_ascend.cli", "run", str(config), *args], cwd=ROOT,
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen)  # fmt: skip

    def run(self, config: Path, *args: str) -> tuple[int, str]:
        """(exit code, output) of ``npd run``."""
        process = self.start(config, *args)
        out, _ = process.communicate()
        return process.returncode, out
