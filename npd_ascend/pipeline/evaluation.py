"""Accuracy of any checkpoint, outside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.evaluate.registry import CHECKERS, load_checker_data
from npd_ascend.models.weights import check_checkpoint
from npd_ascend.ops.environments import Environments, resolve_device
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline.runner import Runner, ShardLost
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.report.live import LiveView
from npd_ascend.store.atomic import read_sealed, write_json
from npd_ascend.store.layout import RunDir


def evaluate_checkpoint(config: Config, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Answers the held-out prompts of ``config.evaluate`` with ``checkpoint`` and checks them.

    Args:
        config: its ``evaluate``, ``data``, ``rollout`` and ``device`` sections are used.
        checkpoint: Hugging Face folder.
        out: folder for prompts, answers and ``result.json``; resumed like a run.

    Returns:
        The result as the evaluate stage writes it.
    """
    if not config.evaluate.prompts:
        raise UserError("the configuration has no evaluate.prompts: nothing to evaluate on")
    models = config.models.model_copy(update={"student": checkpoint, "tokenizer": config.models.tokenizer})
    config = config.model_copy(update={"models": models})
    check_checkpoint(checkpoint)
    CHECKERS.find(config.evaluate.checker)
    load_checker_data(config.evaluate.checker_data)
    run = RunDir(out)
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
    result = read_sealed(step.done_file) or {}
    write_json(out / "result.json", result)
    return result
