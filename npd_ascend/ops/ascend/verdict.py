"""What is said of compiled graphs: lines for people, findings, and JSON for other tools."""

from __future__ import annotations

from collections import Counter
from typing import Any

from npd_ascend.ops.ascend.output import KINDS, Collective, Phase
from npd_ascend.ops.ascend.run import Compiled
from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.plan.memory import max_device_memory

MARGIN = 2 * 2**30
"""Bytes that planned memory must leave of ``device.max_device_memory``: workspaces of operators, which a dry run counts
as 0, and fragmentation. HCCL's buffers lie outside that limit, as do driver and runtime."""
_HOSTED = 4
"""Operators of a layer that may handle values on the host before that is worth a warning."""
_LEGACY = 8
"""Legacy operators that a line names."""


def judge(c: Compiled) -> list[Finding]:
    """A graph as findings: its make-up, and each reason for which it fails."""
    name = heading(c)
    if c.refused:
        return [error(f"{name}: {c.failed}", "another value in the configuration, or with --set")]
    if c.failed:
        return [error(f"{name}: does not compile ({c.failed})", "report the line with npd version")]
    out = [ok(f"{name}: {line}") for line in describe(c)]
    for kind, why in (("none", "no kernel on Ascend, so it would run on the host"), ("aicpu", "an AICPU kernel")):
        found = sum((p.kernels.get(kind, Counter()) for p in c.phases.values()), Counter())
        if found:
            out.append(error(f"{name}: {why}: {_named(found)}", "report the line with npd version"))
    hosted = sum((p.kernels.get("host", Counter()) for p in c.phases.values()), Counter())
    if hosted.total() > _HOSTED * c.graph.layers:
        out.append(
            warning(
                f"{name}: {hosted.total()} operators handle values on the host ({_named(hosted)})",
                "train.recompute: true keeps the segment ends inside one graph, at the cost of time",
            )
        )
    limit = max_device_memory(c.graph.device["max_device_memory"])
    if c.memory + MARGIN > limit:
        out.append(
            error(
                f"{name}: plans {_gib(c.memory)} GB of device memory{_marked(c)}, a lower bound; with {_gib(MARGIN)} "
                f"GB for workspaces that is more than device.max_device_memory, {_gib(limit)} GB",
                "see npd plan for what fits: recompute, optimizer_sharding, tensor_parallel, context_parallel, "
                "row_length",
            )
        )
    return out


def heading(c: Compiled) -> str:
    """Stage, model and rank."""
    g = c.graph
    rank = f", rank {g.rank} of {g.size}" if g.size > 1 else ""
    return f"{g.stage}, {g.model}{' (built-in shape)' if g.built_in else ''}{rank}"


def describe(c: Compiled) -> list[str]:
    """Lines on depth, memory, kernels and collectives."""
    layers = (
        f"{c.graph.layers} layers"
        if not c.extrapolated
        else (f"{c.graph.layers} layers, extrapolated from {' and '.join(map(str, c.depths))}")
    )
    peaks = ", ".join(f"{n} {_gib(p.memory)}" for n, p in c.phases.items() if p.memory)
    out = [f"{layers}; planned device memory at least {_gib(c.memory)} GB ({peaks})"]
    for name, phase in c.phases.items():
        if not phase.kernels:
            continue
        legacy = phase.kernels.get("acl", Counter())
        counts = ", ".join(f"{n} {k}" for k in KINDS if (n := phase.count(k)) and k != "hccl")
        named = f" ({_named(legacy)})" if legacy else ""
        out.append(f"{name}: {counts}{named}")
        if phase.collectives:
            out.append(f"{name}: collectives {'; '.join(map(_collective, phase.collectives))}")
    return out


def as_json(c: Compiled) -> dict[str, Any]:
    """All that was found, bytes and counts."""
    g = c.graph
    return {
        "stage": g.stage,
        "model": g.model,
        "built_in_shape": g.built_in,
        "rank": g.rank,
        "size": g.size,
        "row_length": g.row_length,
        "settings": g.settings,
        "layers": g.layers,
        "compiled_layers": c.depths,
        "extrapolated": c.extrapolated,
        "failed": c.failed or None,
        "seconds": round(c.seconds, 1),
        "host_bytes": c.host,
        "planned_bytes": c.memory,
        "margin_bytes": MARGIN,
        "limit_bytes": int(max_device_memory(g.device["max_device_memory"])),
        "phases": {n: _phase(p) for n, p in c.phases.items()},
    }


def _phase(p: Phase) -> dict[str, Any]:
    return {
        "planned_bytes": p.memory or None,
        "kernels": {k: dict(sorted(p.kernels[k].items())) for k in KINDS if k in p.kernels},
        "collectives": [vars(c) for c in p.collectives],
    }


def _collective(c: Collective) -> str:
    size = f"{c.bytes / 2**20:.4g} MB" if c.bytes >= 2**20 else f"{c.bytes / 2**10:.4g} KB"
    return f"{c.count} x {c.kind} of {size} over {c.ranks}"


def _named(operators: Counter[str]) -> str:
    first = [f"{n} {op}" for op, n in operators.most_common(_LEGACY)]
    return ", ".join(first) + (f" and {len(operators) - _LEGACY} more kinds" if len(operators) > _LEGACY else "")


def _marked(c: Compiled) -> str:
    return " (extrapolated)" if c.extrapolated else ""


def _gib(value: float) -> str:
    return f"{value / 2**30:.1f}"
