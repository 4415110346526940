"""Accuracy of any checkpoint, outside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npd_ascend.config import Config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline.runner import Runner, ShardLost
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.report.live import LiveView
from npd_ascend.store.atomic import read_sealed, write_json
from npd_ascend.store.identity import model_fingerprint
from npd_ascend.store.layout import RunDir
from npd_ascend.tasks.registry import Checker


def evaluate_checkpoint(config: Config, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Answers the held-out prompts of ``config.evaluate`` with ``checkpoint`` and checks them.

    Args:
        config: its ``evaluate``, ``data``, ``rollout`` and ``device`` sections are used.
        checkpoint: Hugging Face folder.
        out: below it, prompts, answers and ``result.json`` get a folder named after the checkpoint and its content, so
            that no checkpoint overwrites what another got; resumed like a run.

    Returns:
        The result as the evaluate stage writes it, with ``checkpoint`` (its path), ``checkpoint_id`` (a hash of its
        content) and ``written`` (where the result is).
    """
    if not config.evaluate.prompts:
        raise UserError("the configuration has no evaluate.prompts: nothing to evaluate on")
    models = config.models.model_copy(update={"student": checkpoint, "tokenizer": config.models.tokenizer})
    config = config.model_copy(update={"models": models})
    check_checkpoint(checkpoint)
    Checker.of(config)
    identity = model_fingerprint(checkpoint, out / ".hashes.json")
    run = RunDir(out / f"{checkpoint.resolve().name}-{identity[:8]}")
    run.lock()
    device = resolve_device(config.device)
    runner = Runner(config, run, Environments.find(), LiveView(), Placement.of(config, device.target))
    try:
        runner.start()
        steps = StepBuilder(config, run, device, alone=True)
        for stage in ("prepare_eval", "evaluate_rollout", "evaluate"):
            step = steps.step(stage, 0, evaluation="checkpoint")
            runner.run_step(step)
    except ShardLost as e:  # of the checkpoint, which another run wrote, or of the answers, which are made again
        raise UserError(str(e)) from None
    finally:
        runner.close()
        run.unlock()
    assert step.done_file is not None
    result = {"checkpoint": str(checkpoint.resolve()), "checkpoint_id": identity, **(read_sealed(step.done_file) or {})}
    written = run.root / "result.json"
    write_json(written, result)
    return {**result, "written": str(written)}
