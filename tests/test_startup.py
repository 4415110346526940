"""Without an engine: names are found, a dry run is made, and starting costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = ("mindspore", "mindformers", "vllm", "torch", "ray")
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({ENGINES}))\n"
"""To Python, a module that is None there cannot be imported."""
MEGABYTES = 150
PEAK = """
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
"""Not ``ru_maxrss``, which begins at that of the process that started this one."""


def without_engines(code: str) -> str:
    """Output of a fresh interpreter in which no engine can be imported."""
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dry_run(tmp_path):
    said = without_engines(
        f"""
import sys
from npd_ascend.commands import app
app(["run", "configs/mini.yaml", "--dry-run", "--set", "run.dir={tmp_path / "run"}"], standalone_mode=False)
large = ("transformers", "matplotlib", "pyarrow", "filelock", "pandas", "scipy")
print("\\n#", *(m for m in large if m in sys.modules))
"""
        + PEAK
    )
    assert "g001 train" in said and "# cost" in said
    heavy, megabytes = said.splitlines()[-2:]
    assert int(megabytes) < MEGABYTES and heavy == "#"


def test_registries():
    assert without_engines("""
from npd_ascend.tasks.registry import REWARDS, TASKS
from npd_ascend.bench.registry import BENCHMARKS
from npd_ascend.monitors.registry import MONITORS
from npd_ascend.objectives.registry import TERMS, TOKEN_WEIGHTS
from npd_ascend.recipes import RECIPES
from npd_ascend.select.registry import FILTERS
from npd_ascend.study.method import METHODS
from npd_ascend.sync.registry import POLICIES
for registry in (REWARDS, TASKS, RECIPES, FILTERS, METHODS, MONITORS, POLICIES, TERMS, TOKEN_WEIGHTS, BENCHMARKS):
    print(registry.what, *registry.all())
""").splitlines() == [
        "reward choice code exact format http ifeval length math maze number rules",
        "task choice gsm8k humaneval ifeval math mbpp",
        "recipe grpo npd",
        "filter delta_ifd fire none ppl_weighted random student_ifd teacher_ifd",
        "method distillm distillm2 gkd grpo minillm npd off_policy on_policy seqkd sft supkd",
        "monitor swanlab tensorboard wandb",
        "sync policy kl static",
        "loss term cispo cross_entropy dppo drift forward_kl icepop jsd kl_sampled ppo_clip reinforce reverse_kl"
        " skew_kl skew_reverse_kl tis",
        "token weight none position_decay surprisal_gate teacher_confidence",
        "benchmark aime24 aime25 ceval cluewsc cmmlu drop gpqa gsm8k humaneval ifeval math500 math500_avg5 mbpp mmlu",
    ]


def test_modules_above_the_engines():
    """Whatever conducts a run is importable, and with it numpy's stages."""
    without_engines("""
import importlib, pkgutil, npd_ascend
for room in ("config", "store", "rows", "sync", "tasks", "data", "draw", "reward", "select", "pack", "evaluate",
             "recipes", "report", "pipeline"):
    package = importlib.import_module(f"npd_ascend.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import npd_ascend.api, npd_ascend.commands, npd_ascend.ops.doctor, npd_ascend.ops.plan, npd_ascend.rollout.pool
import npd_ascend.study.conduct
""")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "-h"]], ids=" ".join)
def test_what_starting_loads(arguments):
    """Starting is quick because nothing large is imported; how quick is for benchmarks to say."""
    said = without_engines(
        f"""
import sys
from npd_ascend.cli import main
sys.argv = ["npd", *{arguments!r}]
try:
    main()
except SystemExit as e:
    assert not e.code, e.code
large = ("numpy", "pyarrow", "pandas", "transformers", "tokenizers", "matplotlib")
print("\\n#", *(m for m in large if m in sys.modules))
"""
        + PEAK
    )
    large, megabytes = said.splitlines()[-2:]
    assert int(megabytes) < MEGABYTES and large == "#"
