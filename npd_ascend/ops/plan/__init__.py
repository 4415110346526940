"""``npd plan``: what a run will take before it is started: tokens, FLOPs, hours, disk and device memory."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.plan.calibrate import Calibration
from npd_ascend.ops.plan.devices import DEFAULT_NPU
from npd_ascend.ops.plan.estimate import Estimate, StageCost, estimate
from npd_ascend.ops.plan.room import check_room
from npd_ascend.ops.plan.text import render
from npd_ascend.ops.plan.workload import workload

__all__ = ["Estimate", "StageCost", "check_room", "estimate", "estimate_run", "render"]


def estimate_run(config: Config, device: str = DEFAULT_NPU, devices: int | None = None, prompts: int | None = None,
                 prompt_tokens: float | None = None, answer_tokens: float | None = None,
                 calibrate: Path | None = None) -> Estimate:
    """``estimate`` with what the command line gives; see there and ``workload``. Lengths that neither the command line
    nor the run itself knows are taken from the run of ``calibrate``."""
    try:
        work = workload(config, prompts, prompt_tokens, answer_tokens, calibrate)
    except UserError as e:
        raise UserError(f"{e}; or give --prompts and --prompt-tokens") from None
    return estimate(config, device=device, devices=devices, workload=work,
                    calibration=Calibration.from_run(calibrate) if calibrate else None)
