"""``npd doctor --smoke``: the first ten minutes on a new machine, with the user's models and prompts.

A tiny run of the whole chain, two generations of a few prompts, in a folder of its own: rollouts, annotation, two
training steps or more, one reload of weights. Then what vLLM and MindFormers say of the same tokens is compared, for
the first snapshot and for the one that was trained, exported and reloaded. On an NPU ``numerics`` comes first.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from npd_ascend.config import Config, dump_config
from npd_ascend.config.load import parse_config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error, ok
from npd_ascend.ops.doctor.selftest import engine, judge
from npd_ascend.ops.doctor.steps import Steps
from npd_ascend.ops.environments import resolve_device, visible_npus
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

PROMPTS, ANSWER = 16, 64
_ROW = {"cpu": 128, "ascend": 2048}
_NLL_GAP = {"float32": 2e-3, "bfloat16": 0.05}
"""Mean NLL of an answer by vLLM and by MindFormers, nats a token."""


def smoke(config: Config, out: Path, *, cpu: bool = False) -> list[Finding]:
    """Runs the smoke test.

    Args:
        config: models and prompts are taken from it, sizes are made small.
        out: folder of the run; created by the caller, resumed like any run.
        cpu: without an NPU, all but the comparison of kernels and types.

    Raises:
        UserError: there is no NPU and ``cpu`` was not asked for, or the run stops.
    """
    if cpu:
        config = small(config, out, {"target": "cpu", "dtype": "auto"})
    elif not visible_npus():
        raise UserError("--smoke tests an NPU and none is visible; --smoke --cpu runs the part that needs none")
    else:
        config = small(config, out, {"target": "ascend", "dtype": "bfloat16"})
    device = resolve_device(config.device)
    findings: list[Finding] = []
    ascend = device.target == "ascend"
    with Steps(2 + 4 * ascend) as steps:
        if ascend:
            findings += _numerics(config, steps)
        steps.begin(f"a tiny run of the whole chain in {config.run.dir}")
        _run(config, out)
        steps.begin("comparing vLLM and MindFormers on its answers")
        for finding in judge_run(RunDir(config.run.dir), device.dtype):
            steps.found(finding)
            findings.append(finding)
    return findings


def small(config: Config, out: Path, device: dict[str, str]) -> Config:
    """A configuration like the given one, but of a few prompts, short answers and two generations."""
    tree = config.model_dump(mode="json")
    target = device["target"]
    longest = tree["data"]["max_prompt_tokens"] = min(config.data.max_prompt_tokens, 512)
    ranks, context, cuts = 1, 1, {"tensor_parallel": 1}
    if target == "ascend":
        t = config.train
        ranks, context, cuts = t.data_parallel, t.context_parallel, {}
    step = 16 * context
    row = step * math.ceil(max(_ROW[target], longest + ANSWER) / step)
    tree["run"] = {"dir": str(out / "run"), "seed": 0}
    tree["data"] |= {"limit": PROMPTS, "too_long": "drop"}
    tree["rollout"] |= {
        "source": "student",
        "max_new_tokens": ANSWER,
        "greedy": True,
        "samples": 1,
        "shard_size": 8,
        "workers": min(2, config.rollout.workers),
        "max_num_seqs": 16,
    }
    tree["annotate"] |= {"row_length": row, "micro_batch": 1, "student_nll": "prefill", **cuts}
    tree["select"] = {"filter": "delta_ifd", "lower": None, "upper": None}
    tree["pack"]["row_length"] = row
    tree["train"] |= {
        "epochs": 2,
        "global_batch": ranks,
        "micro_batch": 1,
        "data_parallel": ranks,
        "lr": 1e-5,
        "min_lr": 1e-6,
        "checkpoint_every": 0,
        **cuts,
        "context_parallel": context,
        "optimizer_sharding": config.train.optimizer_sharding and ranks * context > 1,
    }
    tree["sync"] = {"policy": "static", "refreshes": 1, "probe_samples": 8, "lag_every": 0}
    tree["evaluate"] = {}
    tree["device"] |= device
    return parse_config(tree, "smoke test")


def judge_run(run: RunDir, dtype: str) -> list[Finding]:
    """What a finished smoke run shows."""
    out = []
    for generation in run.generations():
        g = run.generation(generation)
        ours = Dataset.open(g.rollouts, "rollouts").read_all(["logprobs"])["logprobs"].to_pylist()
        theirs = Dataset.open(g.student_scores, "scores").read_all(["nll"])["nll"].to_numpy()
        gaps = [abs(-np.mean(a, dtype=np.float64) - b) for a, b in zip(ours, theirs, strict=True) if a]
        what = "vLLM and MindFormers agree on the answers" + (", weights reloaded" if generation else "")
        worst = float(max(gaps)) if gaps and not np.isnan(gaps).any() else float("nan")
        out.append(judge({"name": what, "value": worst, "limit": _NLL_GAP[dtype]}))
    rows = read_metrics(run.metrics)
    steps = [r for r in rows if r["kind"] == "train"]
    finite = all(np.isfinite([r["loss"], r["grad_norm"]]).all() for r in steps)
    said = f"smoke: {len(steps)} training steps"
    if len(steps) >= 2 and finite:
        out.append(ok(f"{said}, loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}"))
    else:
        out.append(error(said, "at least two with finite loss were expected; look at logs/ of the run"))
    fresh = [r["forward"] for r in rows if r["kind"] == "lag"]
    out.append(judge({"name": "lag at the start of a generation", "value": min(fresh, default=math.nan), "limit": 0.0}))
    seconds = {
        s: sum(r["seconds"] for r in rows if r["kind"] == "stage" and r["stage"] == s)
        for s in ("rollout", "annotate_teacher", "annotate_student", "train")
    }
    return [
        *out,
        ok(
            "smoke: seconds of the stages, start-up and compilation included: "
            + ", ".join(f"{s} {t:.0f}" for s, t in seconds.items())
        ),
    ]


def _run(config: Config, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "smoke.yaml"
    path.write_text(dump_config(config))
    # Its progress goes where messages go: standard output is for the findings.
    done = subprocess.run(
        [sys.executable, "-m", "npd_ascend.cli", "run", str(path)], text=True, stdout=2, stderr=subprocess.PIPE
    )
    if done.returncode:
        last = next((x for x in reversed(done.stderr.splitlines()) if x.strip()), "no message")
        raise UserError(f"the smoke run stopped: {last.removeprefix('error: ')} (its logs: {config.run.dir / 'logs'})")


def _numerics(config: Config, steps: Steps) -> list[Finding]:
    """Kernels and types of the NPU, in a process of the MindSpore environment."""
    job = config.run.dir.parent / "numerics.json"
    job.parent.mkdir(parents=True, exist_ok=True)
    job.write_text(
        json.dumps(
            {
                "student": str(config.models.student),
                "row_length": _ROW["ascend"],
                "max_device_memory": config.device.max_device_memory,
            }
        )
    )
    return engine(Environments.find().mindspore, "npd_ascend.ops.numerics", job, steps)
