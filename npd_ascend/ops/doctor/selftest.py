"""``npd doctor --selftest``: starts the tests in the engines' environments and reads what they say."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.doctor.finding import Finding, error, ok
from npd_ascend.ops.environments import Environments, resolve_device
from npd_ascend.progress import message

_STARTED = time.monotonic()
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
        job = {"teacher": str(config.models.teacher), "student": str(config.models.student),
               "device": device.model_dump(mode="json"), "row_length": _ROW[device.target],
               "reference": str(Path(folder) / "reference.npz")}
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        out = engine(environments.rollout, "npd_ascend.ops.hf_logits", path)
        if out:
            path.write_text(json.dumps({**job, "reference": None}))
        return out + engine(environments.mindspore, "npd_ascend.ops.selftest", path)


def engine(python: Path, module: str, job: Path) -> list[Finding]:
    """Runs a module of tests with an interpreter, telling what it is at; its result lines as findings, and an error
    when it stops."""
    env = {**os.environ, "GLOG_v": "3", "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            child = subprocess.Popen([str(python), "-m", module, str(job)], stdout=subprocess.PIPE, stderr=errors,
                                     text=True, errors="replace", env=env)
        except OSError as e:
            raise UserError(f"{python}: cannot be started ({e.strerror}); run scripts/setup_env.sh") from None
        assert child.stdout is not None
        out = [judge(result) for line in child.stdout if (result := _result(line)) is not None]
        if child.wait():
            errors.seek(0)
            last = next((line for line in reversed(errors.readlines()) if line.strip()), "no message").strip()
            out.append(error(f"{module.rpartition('.')[2]}: stopped ({last})", f"look at the environment of {python}"))
    return out


def _result(line: str) -> dict[str, Any] | None:
    """A result that a line holds; what begins is passed on to who watches."""
    if line.startswith('{"begins"'):
        tell(json.loads(line)["begins"])
    return json.loads(line) if line.startswith('{"name"') else None


def tell(what: str) -> None:
    """A line about what begins, with the time that the command has taken so far."""
    seconds = round(time.monotonic() - _STARTED)
    message(f"{seconds // 60}:{seconds % 60:02d}  {what} ...")


def judge(result: dict[str, Any]) -> Finding:
    """A result line as a finding; NaN is no number and fails."""
    value, limit = result["value"], result["limit"]
    what = f"test: {result['name']} ({value:.2g}, at most {limit:.2g})"
    return ok(what) if value <= limit else error(what, _REMEDY)
