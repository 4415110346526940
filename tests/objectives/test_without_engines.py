"""What a configuration calls by name, and the dry run of a run, where neither MindSpore nor vLLM is installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mindspore", "mindformers", "vllm", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def python(code, *args):
    return subprocess.run(
        [sys.executable, "-c", MISSING + code, *map(str, args)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_registries():
    done = python("""
from npd_ascend.objectives.registry import TERMS, TOKEN_WEIGHTS
print(*TERMS.all(), *TOKEN_WEIGHTS.all())
""")
    assert done.returncode == 0, done.stderr
    assert {"jsd", "skew_kl", "skew_reverse_kl", "cross_entropy", "teacher_confidence"} <= set(done.stdout.split())


def test_dry_run(tmp_path):
    done = python(
        "from npd_ascend.cli import main; main()",
        "run",
        "configs/mini.yaml",
        "--dry-run",
        "--set",
        f"run.dir={tmp_path / 'run'}",
        "--set",
        "train.loss.topk_norm=tail",
        "--set",
        "train.loss.terms={cross_entropy: 0.1, 'jsd:0.3': 0.9, skew_reverse_kl: 0.2}",
    )
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert "annotate_teacher" in done.stdout and "train" in done.stdout
