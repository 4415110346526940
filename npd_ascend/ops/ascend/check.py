"""All graphs of a configuration, compiled one after the other and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.environments import Environments
from npd_ascend.ops.ascend.cann import Cann
from npd_ascend.ops.ascend.depths import depths, extrapolate
from npd_ascend.ops.ascend.graphs import Graph, graphs
from npd_ascend.ops.ascend.run import Compiled, compile_graph
from npd_ascend.ops.ascend.verdict import MARGIN, as_json, heading, judge
from npd_ascend.ops.doctor.finding import Finding, ok
from npd_ascend.ops.doctor.steps import Steps
from npd_ascend.ops.inputs import check_names
from npd_ascend.out_of_memory import free_bytes
from npd_ascend.store.atomic import write_json

_SHARE = 0.8
"""Of the host's free memory, what compiling may take."""


def compile_config(config: Config, out: Path | None = None) -> list[Finding]:
    """Compiles what a configuration would on NPUs, and judges it.

    Args:
        config: which.
        out: file for all that was found, as JSON; None: nowhere.

    Raises:
        UserError: the configuration is not one, or there is nothing to compile with.
    """
    check_names(config)
    todo = graphs(config)
    python = Environments.find().mindspore
    with Steps() as steps:
        steps.begin("CANN or its stand-ins")
        cann = Cann.find(python)
        made = [compile_deep(g, python, cann, free_bytes() * _SHARE, steps.begin) for g in todo]
    if out is not None:
        write_json(out, {"with": cann.name, "graphs": [as_json(c) for c in made]})
    first = ok(
        f"compiled with {cann.name}: a dry run, which computes nothing; memory is a lower bound, to which "
        f"{MARGIN / 2**30:.0f} GB are added"
    )
    return [first, *(finding for c in made for finding in judge(c))]


def compile_deep(
    graph: Graph,
    python: Path,
    cann: Cann,
    room: float,
    tell: Callable[[str], None] = lambda _: None,
    build: Callable[..., Compiled] = compile_graph,
) -> Compiled:
    """A graph at its full depth where ``room`` bytes of host memory allow it, else extrapolated from two depths;
    ``tell`` takes a line about what begins."""
    found = []
    for layers in depths(graph, room):
        cut = graph.cut_to(layers)
        what = heading(Compiled(cut, [layers], {}))
        of = "" if layers == graph.layers else f" of {graph.layers}"
        c = build(cut, python, cann, lambda phase, said=f"{what}, {layers}{of} layers": tell(f"{said}: {phase}"))
        if c.failed:
            return replace(c, graph=graph)
        found.append(c)
    if len(found) == 1:
        return found[0]
    a, b = found
    at = (a.graph.layers, b.graph.layers)
    return Compiled(
        graph, list(at), extrapolate(a.phases, b.phases, at, graph.layers), a.seconds + b.seconds, max(a.host, b.host)
    )
