"""``npd plan``: what a run will take before it is started: tokens, FLOPs, hours, disk and device memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.models.shapes import missing, said_of
from npd_ascend.ops.environments import visible_npus
from npd_ascend.ops.plan.calibrate import Calibration
from npd_ascend.ops.plan.devices import DEFAULT_NPU
from npd_ascend.ops.plan.estimate import Estimate, StageCost, estimate
from npd_ascend.ops.plan.probe import cached, probe
from npd_ascend.ops.plan.room import check_room
from npd_ascend.ops.plan.text import render
from npd_ascend.ops.plan.workload import Workload, workload

__all__ = [
    "Estimate",
    "StageCost",
    "check_room",
    "compare_loops",
    "estimate",
    "estimate_here",
    "estimate_run",
    "render",
]


def estimate_run(
    config: Config,
    device: str | None = None,
    devices: int | None = None,
    prompts: int | None = None,
    prompt_tokens: float | None = None,
    answer_tokens: float | None = None,
    calibrate: Path | None = None,
) -> Estimate:
    """``estimate`` with what the command line gives; see there and ``workload``. Lengths that neither the command line
    nor the run itself knows are taken from the run of ``calibrate``.

    Without a device named, a configuration for the CPU is planned for this machine: by the rates of ``calibrate``, or
    of a probe that takes about five seconds.
    """
    work = workload(config, prompts, prompt_tokens, answer_tokens, calibrate, assume=True)
    rates = Calibration.from_run(calibrate) if calibrate else None
    target = config.device.target
    if device is None and (target == "cpu" or target == "auto" and not visible_npus()):
        return estimate_here(config, work, rates, measure=True)
    return estimate(
        config, device=device or DEFAULT_NPU, devices=devices, workload=work, calibration=rates, assume=True
    )


def estimate_here(
    config: Config, work: Workload | None = None, rates: Calibration | None = None, measure: bool = False
) -> Estimate:
    """Estimate of a run on this machine's CPU.

    Args:
        config: the run.
        work: prompt statistics; None: found.
        rates: of a finished run; None: of a probe.
        measure: whether to measure where there is no probe of an earlier plan; else there are then no seconds.
    """
    work = work or workload(config, assume=True)
    how = "this machine, by measured rates"
    if rates is None:
        found = probe(config, work) if measure else cached(config, work)
        how = f"this machine ({found.machine}), by a probe" if found else "this machine, not measured yet"
        rates = found.calibration(config) if found else None
    return estimate(config, workload=work, calibration=rates, cpu=how, assume=True)


def compare_loops(
    config: Config,
    loops: Sequence[str],
    device: str | None = None,
    devices: int | None = None,
    prompts: int | None = None,
    prompt_tokens: float | None = None,
    answer_tokens: float | None = None,
    like: Path | None = None,
) -> str:
    """``against`` with what the command line gives; lengths as for ``estimate_run``."""
    from npd_ascend.ops.plan.against import against, setting

    work = workload(config, prompts, prompt_tokens, answer_tokens, like, assume=True)
    text = against(setting(config, device or DEFAULT_NPU, devices, work), [name.strip() for name in loops])
    absent = missing(config.models.student, config.models.teacher)
    return "\n".join([*([said_of(absent)] if absent else []), *work.notes, text])
