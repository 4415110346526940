"""The example that reads a run: on a run made by the store's writers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from matplotlib.image import imread

from npd_ascend.store.dataset import Dataset
from tests.report.conftest import fabricate

ROOT = Path(__file__).parents[2]


def plot(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/plot_delta_ifd.py", *map(str, args)], cwd=ROOT, text=True, capture_output=True
    )


def test_plots_every_generation(tmp_path):
    facts = fabricate(tmp_path / "run")
    done = plot(facts.root, tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    both = imread(tmp_path / "out.png")
    assert (both[..., :3].min(-1) < 0.9).mean() > 0.02, "an empty picture"
    generation = facts.root / "generations" / "001" / "selection"
    Dataset.open(generation, "selection").discard(0)
    assert plot(facts.root, tmp_path / "one.png").returncode == 0
    assert imread(tmp_path / "one.png").shape[0] * 2 == both.shape[0]


def test_refuses_in_one_line(tmp_path):
    done = plot(tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path}: no run there")
    assert len(done.stderr.splitlines()) == 1
