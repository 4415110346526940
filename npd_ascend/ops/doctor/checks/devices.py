"""NPUs: are they there, healthy, free, and enough."""

from __future__ import annotations

from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.registry import Patient, check
from npd_ascend.ops.environments import chosen_npus
from npd_ascend.ops.placement import VISIBLE, Placement
from npd_ascend.ops.plan.devices import find_npu

_IDLE_MB = 6000
"""An idle device shows 2.9 to 3.5 GB in use."""


@check
def devices_present(p: Patient) -> list[Finding]:
    """Device files, and what ASCEND_RT_VISIBLE_DEVICES leaves of them."""
    npus = p.machine.npus
    if not npus:
        if p.target == "cpu":
            return [ok("NPUs visible: 0 (CPU will be used)")]
        return [
            error(
                "no NPU is visible (/dev/davinci*)",
                "start the container with --device /dev/davinci0 ... and /dev/davinci_manager, /dev/devmm_svm, "
                "/dev/hisi_hdc (docs/ascend.md); or set device.target: cpu",
            )
        ]
    missing = [d for d in ("davinci_manager", "devmm_svm", "hisi_hdc") if not p.machine.glob(f"/dev/{d}")]
    if missing:
        return [error(f"/dev has NPUs but not {', '.join(missing)}", "pass these devices to the container as well")]
    try:
        chosen = chosen_npus(p.machine.env.get("ASCEND_RT_VISIBLE_DEVICES"), npus)
    except UserError as e:
        return [error(str(e), "name devices of this node, such as 0,1,2,3, or unset the variable")]
    return [ok(f"NPUs visible: {len(chosen)}" + ("" if chosen == npus else f" of {len(npus)}"))]


@check
def devices_healthy(p: Patient) -> list[Finding]:
    """Health and free memory as npu-smi reports them."""
    smi = p.machine.npu_smi
    if not p.machine.npus or p.target == "cpu":
        return []
    if smi is None or not smi.chips:
        return [
            warning(
                "npu-smi does not answer",
                "mount /usr/local/bin/npu-smi and /usr/local/dcmi into the container; 'device is used' means "
                "that another, unprivileged container holds the device",
            )
        ]
    out: list[Finding] = []
    sick = [c for c in smi.chips if c.health != "OK"]
    if sick:
        out.append(
            error(
                "unhealthy: " + ", ".join(f"NPU {c.physical} ({c.health})" for c in sick),
                "leave them out with ASCEND_RT_VISIBLE_DEVICES, and look at npu-smi info -t health",
            )
        )
    pids = {q.pid for q in smi.processes}
    full = [c for c in smi.chips if c.used > _IDLE_MB]
    if full:
        who = f"processes {', '.join(map(str, sorted(pids)))}" if pids else "no process that this container can see"
        where = ", ".join(f"NPU {c.physical} {c.used / 1024:.0f} of {c.total / 1024:.0f} GB" for c in full)
        out.append(
            error(
                f"memory in use: {where}, by {who}",
                "end what is left of an earlier job on the host, or choose other devices with "
                "ASCEND_RT_VISIBLE_DEVICES",
            )
        )
    if not out:
        out.append(
            ok(
                f"{len(smi.chips)} x {smi.chips[0].name}, healthy, "
                f"{min(c.total - c.used for c in smi.chips) / 1024:.0f} GB free each"
            )
        )
    return out


@check
def enough_devices(p: Patient) -> list[Finding]:
    """The configuration's widths against the devices of this node and of others like it."""
    if p.config is None or p.target == "cpu" or not p.machine.npus:
        return []
    c, out = p.config, []
    try:
        here = chosen_npus(p.machine.env.get(VISIBLE), p.machine.npus)
    except UserError:
        return []  # devices_present has reported it
    given = p.machine.env.get("NODES", "1")
    nodes = int(given) if given.isdigit() else 1  # several_nodes reports what is wrong with it
    engines, ranks = c.rollout.workers * c.rollout.tensor_parallel, c.train.ranks
    try:
        placement = Placement.of(c, "ascend", here)
        placement.check(c, nodes)
        if engines < len(placement.rollout) * nodes or ranks < len(placement.train) * nodes:
            out.append(
                warning(
                    f"rollout uses {engines} and training {ranks} devices; {placement.describe()}; nodes: {nodes}",
                    "raise rollout.workers and train.data_parallel",
                )
            )
    except UserError as e:
        out.append(error(str(e), "change that setting, or the devices"))
    smi = p.machine.npu_smi
    if smi and smi.chips:
        try:
            find_npu(smi.chips[0].name)
        except UserError as e:
            out.append(warning(str(e), "npd plan cannot estimate for it; the run may work all the same"))
    return out or [ok(f"{placement.describe()}; nodes: {nodes}")]
