"""``npd doctor --selftest``: starts the tests in the engines' environments and reads what they say."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from npd_ascend.config import Config
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.doctor.finding import Finding, error, ok
from npd_ascend.ops.doctor.steps import Steps
from npd_ascend.ops.environments import resolve_device

_STEPS = 11
"""What ``hf_logits`` and ``ops.selftest`` announce together."""
_ROW = {"cpu": 128, "ascend": 2048}
_REMEDY = "do not train with these models and versions; report the line with npd version and the models' config.json"


def selftest(config: Config) -> list[Finding]:
    """The invariants on a configuration's models; each test is one finding.

    Raises:
        UserError: the models or the device are not usable.
    """
    environments, device = Environments.find(), resolve_device(config.device)
    for model in (config.models.teacher, config.models.student):
        ModelSpec.from_folder(model)
    # Where runs stand, because the rollout environment may be a container with a /tmp of its own.
    shared = config.run.dir.resolve().parent
    shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="npd-selftest-", dir=shared) as folder:
        job = {
            "teacher": str(config.models.teacher),
            "student": str(config.models.student),
            "device": device.model_dump(mode="json"),
            "row_length": _ROW[device.target],
            "reference": str(Path(folder) / "reference.npz"),
        }
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        with Steps(_STEPS) as steps:
            out = engine(environments.rollout, "npd_ascend.ops.hf_logits", path, steps)
            if out:
                path.write_text(json.dumps({**job, "reference": None}))
            return out + engine(environments.mindspore, "npd_ascend.ops.selftest", path, steps)


def engine(python: Path, module: str, job: Path, steps: Steps) -> list[Finding]:
    """Runs a module of tests with an interpreter; ``steps`` shows what it is at and what it finds.

    Returns:
        Its result lines as findings, and an error when it stops.
    """
    env = {**os.environ, "GLOG_v": "3", "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            child = subprocess.Popen(
                [str(python), "-m", module, str(job)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                env=env,
            )
        except OSError as e:
            raise UserError(f"{python}: cannot be started ({e.strerror}); run scripts/setup_env.sh") from None
        assert child.stdout is not None
        out = [found for line in child.stdout if (found := _finding(line, steps)) is not None]
        if child.wait():
            errors.seek(0)
            last = next((line for line in reversed(errors.readlines()) if line.strip()), "no message").strip()
            out.append(error(f"{module.rpartition('.')[2]}: stopped ({last})", f"look at the environment of {python}"))
    return out


def _finding(line: str, steps: Steps) -> Finding | None:
    """The result that a line of a test holds, if it holds one; shows it, or what begins."""
    if line.startswith('{"begins"'):
        steps.begin(json.loads(line)["begins"])
    if not line.startswith('{"name"'):
        return None
    found = judge(json.loads(line))
    steps.found(found)
    return found


def judge(result: dict[str, Any]) -> Finding:
    """A result line as a finding; NaN is no number and fails."""
    value, limit = result["value"], result["limit"]
    what = f"test: {result['name']} ({value:.2g}, at most {limit:.2g})"
    return ok(what) if value <= limit else error(what, _REMEDY)
