"""``npd doctor CONFIG --node-report DIR``: the first hour on a node, as one JSON and one page to send back.

Each part is done by itself: one that fails is written down with its error and the next one begins. What is done stays,
so the same command goes on where it was stopped, and takes what failed again.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from npd_ascend import __version__
from npd_ascend.config import Config, dump_config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error, ok
from npd_ascend.ops.doctor.machine import Machine
from npd_ascend.ops.doctor.steps import Steps
from npd_ascend.ops.environments import resolve_device, visible_npus
from npd_ascend.ops.node_report.page import page
from npd_ascend.ops.node_report.parts import PARTS, Setting
from npd_ascend.ops.plan.calibrate import REPORT
from npd_ascend.ops.plan.devices import Npu, find_npu
from npd_ascend.registry import nearest
from npd_ascend.store.atomic import write_bytes, write_json
from npd_ascend.store.identity import digest

__all__ = ["PARTS", "REPORT", "node_report"]

SCHEMA = 1


def node_report(
    config: Config, out: Path, *, path: Path, overrides: list[str], cpu: bool = False, only: Collection[str] = ()
) -> list[Finding]:
    """Takes the parts that are not there yet, and writes ``node_report.json`` and ``node_report.html``.

    Args:
        config: what the node is for; its models must be there, but for the parts that do without.
        out: folder, resumed if it holds a report of the same configuration.
        path, overrides: where ``config`` is from, for the part that reads it again.
        cpu: without an NPU: CPU kernels stand in.
        only: names of parts; empty: all.

    Returns:
        A finding for each part.

    Raises:
        UserError: an unknown part, no NPU without ``cpu``, or a folder that holds something else.
    """
    for name in only:
        if name not in PARTS:
            raise UserError(f"--part {name}: there is no such part; {nearest(name, PARTS)}known: {', '.join(PARTS)}")
    if not cpu and not visible_npus():
        raise UserError(
            "--node-report measures NPUs and none is visible; --node-report DIR --cpu lets the CPU stand in"
        )
    config = _placed(config, "cpu" if cpu else "ascend")
    device, environments = resolve_device(config.device), Environments.find()
    setting = Setting(config, device, environments, out.resolve(), path, overrides, _npu())
    out.mkdir(parents=True, exist_ok=True)
    report = _begun(out / REPORT, setting)
    todo = [name for name in only or PARTS if not _done(report, name)]
    with Steps(len(todo)) as steps:
        for name in todo:
            steps.begin(PARTS[name].what)
            report["parts"][name] = _take(PARTS[name].run, setting)
            _write(out, report)
    return _findings(report, out)


def _npu() -> Npu | None:
    """The device as npu-smi names it; None: there is none, or one that the plan's table lacks."""
    smi = Machine().npu_smi
    try:
        return find_npu(smi.chips[0].name) if smi and smi.chips else None
    except UserError:
        return None


def _placed(config: Config, target: str) -> Config:
    device = config.device.model_copy(update={"target": target, "dtype": "auto"})
    return config.model_copy(update={"device": device})


def _begun(path: Path, s: Setting) -> dict[str, Any]:
    """The report so far, or an empty one."""
    settings = dump_config(s.config)
    same = digest([settings, s.device.model_dump(mode="json"), __version__])
    if path.exists():
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            if found["same"] == same:
                return found
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{path}: of another configuration, device or version; give --node-report a new folder")
    return {
        "schema": SCHEMA,
        "same": same,
        "npd_ascend": __version__,
        "device": s.device.target,
        "npu": s.npu.name if s.npu else None,
        "npus": len(visible_npus()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "layout": {
            "rollout": s.config.rollout.workers,
            "keep_alive": s.config.rollout.keep_alive,
            "annotate_teacher": s.config.annotate.workers,
            "annotate_student": s.config.annotate_student.workers,
        },
        "config": settings,
        "parts": {},
    }


def _done(report: dict[str, Any], name: str) -> bool:
    return bool(report["parts"].get(name, {}).get("status") == "done")


def _take(run: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """A part with what came of it; ``status`` is ``done`` or ``failed``."""
    begun = time.monotonic()
    try:
        result = run(setting)
        errors = [line["error"] for line in result.get("lines", []) if "error" in line]
        errors += [what for level, what, _ in result.get("findings", []) if level == "error"]
    except Exception as e:  # of whatever kind: the report says it, and the next part begins
        said = f"{e}" if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        result, errors = {}, [said.strip().splitlines()[0][:1000] if said.strip() else type(e).__name__]
    status = "failed" if errors else "done"
    return {"status": status, "seconds": round(time.monotonic() - begun, 1), "errors": errors, **result}


def _write(out: Path, report: dict[str, Any]) -> None:
    write_json(out / REPORT, report)
    write_bytes(out / "node_report.html", page(report).encode())


def _findings(report: dict[str, Any], out: Path) -> list[Finding]:
    found = []
    for name, part in report["parts"].items():
        what = f"{name}: {PARTS[name].what}, {part['seconds']:.0f} s"
        if part["status"] == "done":
            found.append(ok(what))
        else:
            more = f" (and {len(part['errors']) - 1} more)" if len(part["errors"]) > 1 else ""
            found.append(error(f"{what}: {part['errors'][0]}{more}", "the same command takes this part again"))
    left = [name for name in PARTS if name not in report["parts"]]
    todo = f"; not taken yet: {', '.join(left)}" if left else ""
    return [*found, ok(f"written: {out / 'node_report.html'} and {REPORT}, to be sent back{todo}")]
