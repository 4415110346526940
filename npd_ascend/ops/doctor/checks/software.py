"""Interpreters, packages, CANN and driver against the table of versions that work together."""

from __future__ import annotations

import json
from pathlib import Path

from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.pairs import MINDSPORE, ROLLOUT, Stack
from npd_ascend.ops.doctor.registry import Patient, check

_LIST = (
    "import importlib.metadata as m, json\n"
    "def v(n):\n"
    "    try: return m.version(n)\n"
    "    except m.PackageNotFoundError: return None\n"
    "print(json.dumps({n: v(n) for n in %r}))"
)
_ABSENT = "import importlib.util as u; print(' and '.join(n for n in ('te', 'hccl') if u.find_spec(n) is None))"
_CANN = (
    "/usr/local/Ascend/cann/*-linux/ascend_toolkit_install.info",
    "/usr/local/Ascend/cann-*/*-linux/ascend_toolkit_install.info",
    "/usr/local/Ascend/ascend-toolkit/latest/*-linux/ascend_toolkit_install.info",
)
_IMAGES = "use the images of docs/ascend.md, whose versions fit together"


@check
def mindspore_environment(p: Patient) -> list[Finding]:
    """MindSpore and MindFormers."""
    if p.environments is None:
        return []
    return _packages(p, "mindspore", p.environments.mindspore, [MINDSPORE[p.target]])


@check
def rollout_environment(p: Patient) -> list[Finding]:
    """vLLM and what it is built on."""
    if p.environments is None:
        return []
    return _packages(p, "rollout", p.environments.rollout, ROLLOUT[p.target])


@check
def cann(p: Patient) -> list[Finding]:
    """CANN toolkits that are installed here."""
    if p.target != "ascend":
        return []
    found = {}
    for pattern in _CANN:
        for path in p.machine.glob(pattern):
            if version := _value(p.machine.read("/" + str(path.relative_to(p.machine.root))), "version"):
                found[version] = path.parents[1]
    wanted = {MINDSPORE["ascend"].cann, *(s.cann for s in ROLLOUT["ascend"])}
    if not found:
        return [error("CANN: no toolkit found under /usr/local/Ascend", "source its set_env.sh, or " + _IMAGES)]
    here = ", ".join(sorted(found))
    if not wanted & set(found):
        return [error(f"CANN {here}: tested with {' and '.join(sorted(wanted))}", _IMAGES)]
    return [ok(f"CANN {here}")]


@check
def cann_packages(p: Patient) -> list[Finding]:
    """Python packages of CANN that MindSpore imports: te compiles operators, hccl joins processes."""
    if p.target != "ascend" or p.environments is None:
        return []
    missing = p.machine.run(str(p.environments.mindspore), "-c", _ABSENT)
    if not missing or not missing.strip():
        return []
    return [
        error(
            f"MindSpore environment: {missing.strip()} of CANN cannot be imported",
            "source set_env.sh of the toolkit (it sets PYTHONPATH), or pip install the wheels of these names "
            "under $ASCEND_HOME_PATH/lib64",
        )
    ]


@check
def driver(p: Patient) -> list[Finding]:
    """The driver, which every container of the node shares."""
    if p.target != "ascend":
        return []
    version = _value(p.machine.read("/usr/local/Ascend/driver/version.info"), "Version")
    version = version or (p.machine.npu_smi.version if p.machine.npu_smi else "")
    wanted = MINDSPORE["ascend"].driver
    if not version:
        return [
            error(
                "driver: version not found",
                "mount /usr/local/Ascend/driver into the container, or install driver and firmware on the host",
            )
        ]
    if _numbers(version) < _numbers(wanted):
        return [
            warning(
                f"driver {version}: CANN 9.0.0 and 9.1.0 were released with {wanted}.RC1",
                "update driver and firmware of the host when kernels fail to load",
            )
        ]
    return [ok(f"driver {version}")]


def _packages(p: Patient, name: str, python: Path, stacks: list[Stack]) -> list[Finding]:
    """Findings against the stack that fits best."""
    setup = f"run: bash scripts/setup_env.sh {name}" if p.target == "cpu" else _IMAGES
    names = sorted({n for s in stacks for n in s.packages})
    try:
        found = json.loads(p.machine.run(str(python), "-c", _LIST % (names,)) or "")
    except ValueError:
        return [error(f"{name} environment: {python} does not run", setup)]
    return min((_compare(name, s, found, setup) for s in stacks), key=lambda f: sum(x.level == "error" for x in f))


def _compare(name: str, stack: Stack, found: dict[str, str | None], setup: str) -> list[Finding]:
    out = []
    for package, version in stack.packages.items():
        have = found.get(package)
        if have is None:
            out.append(error(f"{name} environment: {package} is missing", setup))
        elif not have.startswith(version):
            out.append(error(f"{name} environment: {package} {have}, tested with {version}*", setup))
        else:
            out.append(ok(f"{name} environment: {package} {have}"))
    return out


def _value(text: str | None, key: str) -> str:
    """Value of ``key=value`` in a file of the vendor's."""
    for line in (text or "").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == key:
            return value.strip()
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(x) for x in version.split(".")[:2] if x.isdigit())
