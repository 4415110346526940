"""``npd doctor``: is everything there that a run needs, and what to do about what is not."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.config import load_config
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, render
from npd_ascend.ops.doctor.registry import examine

__all__ = ["Finding", "examine", "render", "visit"]


def visit(
    config: Path | None,
    overrides: list[str] | None = None,
    selftest: bool = False,
    smoke: bool = False,
    cpu: bool = False,
    out: Path = Path("runs/smoke"),
    compile: bool = False,
    json: Path | None = None,
    node_report: Path | None = None,
    parts: list[str] | None = None,
) -> list[Finding]:
    """What the command asks for: the checks, or some of the longer tests.

    Raises:
        UserError: a test without a configuration, or one that cannot run here.
    """
    if not (selftest or smoke or compile or node_report):
        return examine(config, overrides)
    if config is None:
        raise UserError(
            "--selftest, --smoke, --compile and --node-report need a configuration: npd doctor CONFIG --selftest"
        )
    loaded = load_config(config, overrides, inputs=selftest or smoke)
    findings: list[Finding] = []
    if compile:
        from npd_ascend.ops.ascend.check import compile_config

        findings += compile_config(loaded, json)
    if selftest:
        from npd_ascend.ops.doctor.selftest import selftest as run_selftest

        findings += run_selftest(loaded)
    if node_report is not None:
        from npd_ascend.ops.node_report import node_report as take

        findings += take(loaded, node_report, path=config, overrides=overrides or [], cpu=cpu, only=parts or [])
    if smoke:
        from npd_ascend.ops.smoke import smoke as run_smoke

        findings += run_smoke(loaded, out, cpu=cpu)
    return findings
