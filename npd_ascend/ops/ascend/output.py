"""What the compiler said of a graph: kernels from its log, collectives from the order of execution that it writes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

PHASE = "npd-phase: "
"""Begins a line that the compiling process puts into the log: what follows belongs to that phase."""
IGNORED = "-"
"""What comes before the first phase."""
_KERNEL = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
_ON_HOST = re.compile(r"ebuild kernel on CPU (successfully|failed) for node: \S*?(\w+?)-op\d")
_KINDS = {
    "opapi_kernel": "aclnn",
    "acl_kernel": "acl",
    "aicpu_kernel": "aicpu",
    "rt_kernel": "runtime",
    "hccl_kernel": "hccl",
    "internal_kernel": "internal",
    "atb_kernel": "internal",
    "host_kernel": "host",
}
_VALUES = frozenset(
    {"TensorToTuple", "TensorToScalar", "TupleToTensor", "ScalarToTensor", "RealTupleGetItem", "RealMakeTuple"}
)
"""Operators that hand numbers to the host because a kernel takes them as values, and tuples of such numbers from one
graph to the next; Ascend has no other way."""
KINDS = ("aclnn", "acl", "internal", "hccl", "runtime", "host", "aicpu", "none")
"""aclnn; legacy acl operators, compiled when first run; MindSpore's own; collectives; views, which compute nothing;
values for the host; AICPU; on the CPU, because Ascend has no kernel."""


@dataclass(frozen=True)
class Collective:
    """Equal collectives of a phase.

    Attributes:
        kind: ``AllReduce``, ``AllGather``, ``ReduceScatter``, ``AllToAll``.
        ranks: members of the group.
        bytes: that a rank gives to each of them.
        count: how many there are.
    """

    kind: str
    ranks: int
    bytes: int
    count: int


@dataclass
class Phase:
    """What one graph, or graphs that run together, is made of.

    Attributes:
        kernels: kind -> operator -> how many.
        collectives: how many of which size.
        memory: planned device memory while it runs, bytes; 0: not measured.
    """

    kernels: dict[str, Counter[str]] = field(default_factory=dict)
    collectives: list[Collective] = field(default_factory=list)
    memory: int = 0

    def count(self, kind: str) -> int:
        """Operators of a kind."""
        return sum(self.kernels.get(kind, Counter()).values())


def read_log(lines: Iterable[str]) -> dict[str, Phase]:
    """Kernels by phase; what comes before the first phase belongs to none."""
    out: dict[str, Phase] = {}
    name = IGNORED
    for line in lines:
        if line.startswith(PHASE):
            name = line.removeprefix(PHASE).strip()
            continue
        if (found := _kernel(line)) is not None:
            kind, operator = found
            phase = out.setdefault(name, Phase())
            phase.kernels.setdefault(kind, Counter())[operator] += 1
    return out


def _kernel(line: str) -> tuple[str, str] | None:
    if (kernel := _KERNEL.search(line)) is not None:
        return _KINDS.get(kernel[2], "none"), kernel[1]
    if (moved := _ON_HOST.search(line)) is not None:
        return "host" if moved[1] == "successfully" and moved[2] in _VALUES else "none", moved[2]
    return None


def read_collectives(folder: Path, phases: dict[str, Phase]) -> None:
    """Adds the collectives that MindSpore has left below a folder, graph by graph.

    Which graph comes first it does not say, so the graphs are recognised by how many of each kind the log has in them.

    Raises:
        ValueError: they are not those that the log names.
    """
    files = sorted(folder.rglob("comm_execute_order.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    counted = {n: p for n, p in phases.items() if p.count("hccl") and n != IGNORED}
    for order in permutations(counted):
        parts, at = {}, 0
        for name in order:
            n = counted[name].count("hccl")
            parts[name], at = rows[at : at + n], at + n
        if at == len(rows) and all(
            Counter(r["primitive"] for r in part) == counted[name].kernels["hccl"] for name, part in parts.items()
        ):
            for name, part in parts.items():
                counted[name].collectives = _alike(part)
            return
    named = {n: dict(p.kernels["hccl"]) for n, p in counted.items()}
    raise ValueError(f"{len(rows)} collectives in the order of execution, in the log {named}")


def _alike(rows: list[dict[str, str]]) -> list[Collective]:
    """How many there are of each kind, group and size."""
    same = Counter((r["primitive"], len(r["comm_rank"].split()), int(r["input_size"])) for r in rows)
    return [Collective(*what, n) for what, n in sorted(same.items(), key=lambda x: (x[0][0], -x[0][2]))]
