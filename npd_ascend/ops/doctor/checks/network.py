"""Ports and addresses of msrun and HCCL."""

from __future__ import annotations

from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.registry import Patient, check

MSRUN_PORT = 8118
_HCCL_BASE, _HCCL_PORTS = 60000, 16


@check
def ports(p: Patient) -> list[Finding]:
    """HCCL takes 16 ports from its base, msrun one: EJ0003 and EI0019 are two jobs on one host."""
    if p.target != "ascend":
        return []
    env, out = p.machine.env, []
    ranges = env.get("HCCL_HOST_SOCKET_PORT_RANGE")
    if not ranges:
        raw = env.get("HCCL_IF_BASE_PORT", str(_HCCL_BASE))
        if not raw.isdigit() or not 1024 <= int(raw) <= 65520:
            return [error(f"HCCL_IF_BASE_PORT={raw}: expected a port of 1024 to 65520", "unset it, or choose another")]
        base = int(raw)
        taken = [n for n in range(base, base + _HCCL_PORTS) if not p.machine.port_is_free(n)]
        if taken:
            out.append(
                error(
                    f"HCCL's ports {base}-{base + _HCCL_PORTS - 1}: {', '.join(map(str, taken))} in use",
                    "set HCCL_IF_BASE_PORT to a free range of 16, or HCCL_HOST_SOCKET_PORT_RANGE=auto and "
                    "HCCL_NPU_SOCKET_PORT_RANGE=auto",
                )
            )
    port = env.get("MASTER_PORT", str(MSRUN_PORT))
    if not port.isdigit():
        out.append(error(f"MASTER_PORT={port}: not a port", "unset it, or choose a free port"))
    elif env.get("NODES", "1") != "1" and env.get("NODE_RANK", "0") == "0" and not p.machine.port_is_free(int(port)):
        out.append(error(f"msrun's port {port} is in use", "set MASTER_PORT on all nodes to a free one"))
    return out or [ok("ports of HCCL and msrun are free")]


@check
def several_nodes(p: Patient) -> list[Finding]:
    """Settings that every node of several needs."""
    env = p.machine.env
    nodes = env.get("NODES", "1")
    if not nodes.isdigit() or int(nodes) < 1:
        return [error(f"NODES={nodes}: not a number of nodes", "set it to the number of nodes, on all of them")]
    if int(nodes) == 1:
        return []
    out = []
    if not env.get("MASTER_ADDR"):
        out.append(error("NODES is set but MASTER_ADDR is not", "set it to the address of node 0, on all nodes"))
    if not env.get("NODE_RANK", "").isdigit():
        out.append(error("NODES is set but NODE_RANK is not", "set it to 0 on the first node, 1 on the second, ..."))
    if not (env.get("HCCL_SOCKET_IFNAME") or env.get("HCCL_IF_IP")):
        out.append(
            warning(
                "HCCL chooses its network card itself",
                "with several cards set HCCL_SOCKET_IFNAME to the one that reaches the other nodes",
            )
        )
    if p.config is not None and not str(p.config.run.dir).startswith("/"):
        out.append(
            warning(
                f"run.dir {p.config.run.dir} is relative: all nodes must see the same folder",
                "give an absolute path on shared storage",
            )
        )
    return out or [ok(f"node {env['NODE_RANK']} of {nodes}, node 0 at {env['MASTER_ADDR']}")]
