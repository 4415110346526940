"""On what device stages run."""

from __future__ import annotations

import os
from pathlib import Path

from npd_ascend.config.job import Device
from npd_ascend.config.schema import DeviceConfig
from npd_ascend.errors import UserError


def visible_npus() -> list[int]:
    """Device numbers of the NPUs that this process may use; empty without any.

    Raises:
        UserError: ASCEND_RT_VISIBLE_DEVICES names devices that are not there.
    """
    present = sorted(int(p.name.removeprefix("davinci")) for p in Path("/dev").glob("davinci[0-9]*"))
    return chosen_npus(os.environ.get("ASCEND_RT_VISIBLE_DEVICES"), present)


def chosen_npus(choice: str | None, present: list[int]) -> list[int]:
    """What ASCEND_RT_VISIBLE_DEVICES leaves of the devices that are there.

    Args:
        choice: value of the variable: numbers with commas between them; None or empty: all.
        present: device numbers of this machine; without any, the variable is not looked at.

    Raises:
        UserError: it is no list of numbers, or names a device that is not there.
    """
    if not choice or not present:
        return present
    parts = [x.strip() for x in choice.split(",")]
    if not all(x.isdigit() for x in parts):
        raise UserError(f"ASCEND_RT_VISIBLE_DEVICES={choice}: expected numbers with commas between them, such as 0,1,2")
    missing = [x for x in parts if int(x) not in present]
    if missing:
        raise UserError(
            f"ASCEND_RT_VISIBLE_DEVICES={choice}: there is no NPU {', '.join(missing)}; this machine has "
            f"{', '.join(map(str, present))}"
        )
    return [int(x) for x in parts]


def resolve_device(settings: DeviceConfig) -> Device:
    """Turns ``auto`` into what this machine has.

    Raises:
        UserError: ``ascend`` is asked for and no NPU is visible.
    """
    npus = visible_npus()
    target = settings.target if settings.target != "auto" else ("ascend" if npus else "cpu")
    if target == "ascend" and not npus:
        raise UserError(
            "device.target is ascend but no NPU is visible (/dev/davinci*, ASCEND_RT_VISIBLE_DEVICES); "
            "use device.target: cpu to try things without one"
        )
    dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if target == "ascend" else "float32")
    if target == "cpu" and dtype != "float32":
        raise UserError(f"device.dtype {dtype} needs an NPU: MindSpore's CPU backend computes in float32")
    deterministic = target == "cpu" if settings.deterministic is None else settings.deterministic
    return Device(target=target, dtype=dtype, max_device_memory=settings.max_device_memory, deterministic=deterministic)
