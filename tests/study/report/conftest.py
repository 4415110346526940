"""A study's results made up so that every verdict is known."""

from __future__ import annotations

import numpy as np
import pytest

from npd_ascend.store.metrics import MetricsWriter

LEVEL = {"sft": 0.4, "supkd": 0.5, "gkd": 0.7, "distillm2": 0.62, "npd": 0.7}
SECONDS = {"sft": 20.0, "supkd": 25.0, "gkd": 240.0, "distillm2": 300.0, "npd": 30.0}


def write_study(root, seeds=(0, 1, 2), points=3):
    """Writes ``results.jsonl`` with groups baselines, sync and speed on two tasks, one of them without accuracy."""
    writer = MetricsWriter(root / "results.jsonl")
    for task in ("maze", "text"):
        for group in ("baselines", "speed", "sync"):
            arms = ["npd_f0", "npd_f1"] if group == "sync" else list(LEVEL)
            for i, arm in enumerate(arms):
                for seed in seeds:
                    _arm(writer, task, group, arm, i, seed, points)
    writer.log("note", task="maze", group="baselines", arm="npd", seed=0, step=0, text="a remark <b>")


def _arm(writer, task, group, arm, i, seed, points):
    rng = np.random.default_rng([seed, i, len(task), len(group)])
    base = {"task": task, "group": group, "arm": arm, "seed": seed}
    level = LEVEL.get(arm, 0.5 + 0.1 * i) if task == "maze" else 0.0
    total = SECONDS.get(arm, 30.0)
    for p in range(points + 1):
        share = p / points
        right = rng.random(200) < level * (0.3 + 0.7 * share)
        writer.log(
            "eval",
            **base,
            step=60 * p,
            progress=2.0 * p,
            seconds=total * share,
            prompts=400 * p,
            n=200,
            accuracy=float(right.mean()),
            hits="".join("01"[int(r)] for r in right),
        )
    for step in range(1, 61):
        writer.log(
            "train",
            **base,
            step=step,
            progress=step / 10,
            seconds=total * step / 60,
            prompts=step * 20,
            loss=2.0 / step**0.5 + 0.02 * rng.random(),
        )
    for step in range(0, 61, 10):
        writer.log(
            "lag",
            **base,
            step=step,
            progress=step / 10,
            seconds=0.0,
            prompts=0,
            generation=0,
            forward=0.002 * step,
            reverse=0.001 * step,
        )
    kl = 0.5 - 0.3 * LEVEL.get(arm, 0.6) + 0.002 * rng.random()
    writer.log(
        "exposure",
        **base,
        step=60,
        progress=6.0,
        seconds=total,
        prompts=1200,
        kl_st=kl,
        kl_ts=2 * kl,
        exaccerr=100 * kl,
        nll=kl,
        teacher_nll=kl,
        drift=(1 - 2 * kl) ** 2,  # on a line: its root is 1 - kl_ts
        buckets=["0-3", "4-7"],
        kl_ts_by_position=[kl, 2 * kl],
    )
    writer.log(
        "zones",
        **base,
        step=0,
        progress=0.0,
        seconds=0.0,
        prompts=0,
        generation=0,
        below=0.03,
        inside=0.95,
        above=0.02,
        kept=0.95,
    )
    for stage, part in (("rollout", 0.6), ("train", 0.4), ("total", 1.0)):
        writer.log(
            "time",
            **base,
            step=0,
            progress=6.0,
            prompts=1200,
            stage=stage,
            aside=False,
            seconds=total * part,
            timed=True,
        )


@pytest.fixture(scope="session")
def make_study():
    """``write_study``."""
    return write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A study directory."""
    root = tmp_path_factory.mktemp("study") / "made_up"
    root.mkdir()
    write_study(root)
    return root
