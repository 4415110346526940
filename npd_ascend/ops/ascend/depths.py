"""How many layers this host can compile, and what that says of all of them.

Layers are equal, so whatever is counted or planned grows by the same amount from one to the next: two depths give all
others. Where the whole model fits, nothing is extrapolated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from npd_ascend.ops.ascend.graphs import Graph
from npd_ascend.ops.ascend.output import Collective, Phase

_BASE, _LAYER, _WEIGHT, _STATE = 1e9, 0.05e9, 4.0, 8.0
"""Host memory of a compiling process, bytes: of any; of each layer's operators; of each weight that is trained, and
of its state in the optimizer, where that is not cut. With them the 1B's 2, 12 and 26 layers of training take about what
was measured, 5.5, 9.1 and 15.6 GB, and a 7B's 34 of annotation some more than their 1.9 GB."""


def host_bytes(graph: Graph) -> float:
    """Estimate of the host memory that compiling takes."""
    spec, s = graph.spec, graph.settings
    weights = spec.parameters / s["tensor_parallel"] if graph.stage == "train" else 0
    owners = s["data_parallel"] * s["context_parallel"] if s.get("optimizer_sharding") else 1
    return _BASE + _LAYER * spec.num_layers + (_WEIGHT + _STATE / owners) * weights


def depths(graph: Graph, room: float) -> list[int]:
    """Layers to compile: all, or two depths of which the larger fits.

    Args:
        graph: with all of its layers.
        room: bytes of host memory.
    """
    layers = graph.layers
    if host_bytes(graph) <= room or layers <= 2:
        return [layers]
    deep = max((n for n in range(2, layers) if host_bytes(graph.cut_to(n)) <= room), default=2)
    return [max(1, min(2, deep - 1)), deep]


def extrapolate(
    shallow: dict[str, Phase], deep: dict[str, Phase], at: tuple[int, int], layers: int
) -> dict[str, Phase]:
    """Phases at ``layers`` from those at two depths.

    Raises:
        ValueError: the two do not have the same phases.
    """
    if shallow.keys() != deep.keys():
        raise ValueError(f"phases differ: {list(shallow)}, {list(deep)}")

    def line(a: float, b: float) -> int:
        return round(a + (b - a) * (layers - at[0]) / (at[1] - at[0]))

    return {name: _phase(shallow[name], deep[name], line) for name in deep}


def _phase(a: Phase, b: Phase, line: Callable[[float, float], int]) -> Phase:
    kernels = {
        kind: Counter({op: line(a.kernels.get(kind, Counter())[op], n) for op, n in ops.items()})
        for kind, ops in b.kernels.items()
    }
    return Phase(kernels, _collectives(a.collectives, b.collectives, line), line(a.memory, b.memory))


def _collectives(a: list[Collective], b: list[Collective], line: Callable[[float, float], int]) -> list[Collective]:
    """Those of a size that both depths have are of layers. Others are of buckets, which are filled with what there is:
    of these number and sum are extrapolated, as equal ones."""
    before = {(c.kind, c.ranks, c.bytes): c.count for c in a}
    shared = before.keys() & {(c.kind, c.ranks, c.bytes) for c in b}
    out = [
        replace(c, count=line(before[c.kind, c.ranks, c.bytes], c.count))
        for c in b
        if (c.kind, c.ranks, c.bytes) in shared
    ]
    sums: dict[tuple[str, int], list[list[int]]] = {}
    for i, found in enumerate((a, b)):
        for c in found:
            if (c.kind, c.ranks, c.bytes) not in shared:
                total = sums.setdefault((c.kind, c.ranks), [[0, 0], [0, 0]])[i]
                total[0] += c.count
                total[1] += c.count * c.bytes
    for (kind, ranks), (small, large) in sorted(sums.items()):
        count = line(small[0], large[0])
        out += [Collective(kind, ranks, line(small[1], large[1]) // count, count)] if count > 0 else []
    return out
