"""``npd plan``: what a run will take before it is started: tokens, FLOPs, hours, disk and device memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.plan.against import against, setting
from npd_ascend.ops.plan.calibrate import Calibration
from npd_ascend.ops.plan.devices import DEFAULT_NPU
from npd_ascend.ops.plan.estimate import Estimate, StageCost, estimate
from npd_ascend.ops.plan.room import check_room
from npd_ascend.ops.plan.text import render
from npd_ascend.ops.plan.workload import Workload, workload

__all__ = ["Estimate", "StageCost", "check_room", "compare_loops", "estimate", "estimate_run", "render"]


def estimate_run(config: Config, device: str = DEFAULT_NPU, devices: int | None = None, prompts: int | None = None,
                 prompt_tokens: float | None = None, answer_tokens: float | None = None,
                 calibrate: Path | None = None) -> Estimate:
    """``estimate`` with what the command line gives; see there and ``workload``. Lengths that neither the command line
    nor the run itself knows are taken from the run of ``calibrate``."""
    return estimate(config, device=device, devices=devices,
                    workload=_workload(config, prompts, prompt_tokens, answer_tokens, calibrate),
                    calibration=Calibration.from_run(calibrate) if calibrate else None)


def compare_loops(config: Config, loops: Sequence[str], device: str = DEFAULT_NPU, devices: int | None = None,
                  prompts: int | None = None, prompt_tokens: float | None = None, answer_tokens: float | None = None,
                  like: Path | None = None) -> str:
    """``against`` with what the command line gives; lengths as for ``estimate_run``."""
    work = _workload(config, prompts, prompt_tokens, answer_tokens, like)
    return against(setting(config, device, devices, work), [name.strip() for name in loops])


def _workload(config: Config, prompts: int | None, prompt_tokens: float | None, answer_tokens: float | None,
              like: Path | None) -> Workload:
    try:
        return workload(config, prompts, prompt_tokens, answer_tokens, like)
    except UserError as e:
        raise UserError(f"{e}; or give --prompts and --prompt-tokens") from None
