"""The checks by name, and the examination that runs them all.

A check is a function of ``Patient`` in a module of ``checks``; it returns findings and never raises for what it finds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from npd_ascend.config import Config, load_config
from npd_ascend.data.compat import Agreement
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error
from npd_ascend.ops.doctor.machine import Machine


@dataclass
class Patient:
    """What is examined.

    Attributes:
        machine: the machine.
        environments: the interpreters; None when a variable names one that is not there.
        config: configuration of the run, when one was given and is valid.
        findings: what was found before the first check.
        agreement: on what the models of ``config`` agree, once that is known.
    """

    machine: Machine
    environments: Environments | None = None
    config: Config | None = None
    findings: list[Finding] = field(default_factory=list)
    agreement: Agreement | None = None

    @property
    def target(self) -> Literal["cpu", "ascend"]:
        """What the run will use: as configured, else an NPU when there is one."""
        wanted = self.config.device.target if self.config is not None else "auto"
        if wanted == "auto":
            return "ascend" if self.machine.npus else "cpu"
        return wanted


Check = Callable[[Patient], list[Finding]]
_MODULES = ("software", "devices", "network", "variables", "host", "models")
_CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Decorator that enters a check under its function's name."""
    _CHECKS[function.__name__] = function
    return function


def checks() -> dict[str, Check]:
    """All checks by name, in the order in which they are reported."""
    for module in _MODULES:
        importlib.import_module(f"npd_ascend.ops.doctor.checks.{module}")
    return dict(_CHECKS)


def examine(
    config: Path | None = None, overrides: list[str] | None = None, machine: Machine | None = None
) -> list[Finding]:
    """Runs all checks: interpreters, versions, devices, ports, variables and, with a configuration, its models, data
    and disk room."""
    patient = Patient(machine or Machine())
    try:
        patient.environments = Environments.find()
    except UserError as e:
        patient.findings.append(error(str(e), "correct the variable, or unset it and run scripts/setup_env.sh"))
    if config is not None:
        try:
            patient.config = load_config(config, overrides, inputs=True)
        except UserError as e:
            patient.findings.append(error(str(e), "correct the configuration"))
    findings = list(patient.findings)
    for one in checks().values():
        findings += one(patient)
    return findings
