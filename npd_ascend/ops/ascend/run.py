"""One compiling process: started, followed, read."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from npd_ascend.errors import UserError
from npd_ascend.ops.ascend.cann import Cann
from npd_ascend.ops.ascend.graphs import Graph
from npd_ascend.ops.ascend.output import IGNORED, Phase, read_collectives, read_log

_PATIENCE = 60.0
"""Seconds that a process may take to end."""


@dataclass
class Compiled:
    """What came of a graph.

    Attributes:
        graph: with all of its layers.
        depths: layers that were compiled; two of them: ``phases`` are extrapolated.
        phases: what it is made of.
        seconds: that compiling took.
        host: peak host memory, bytes.
        failed: why it did not compile; empty: it did.
        refused: whether it was not even tried, because a setting cannot be on Ascend.
    """

    graph: Graph
    depths: list[int]
    phases: dict[str, Phase]
    seconds: float = 0.0
    host: int = 0
    failed: str = ""
    refused: bool = False

    @property
    def extrapolated(self) -> bool:
        """Whether the phases were not measured at the model's depth."""
        return self.depths != [self.graph.layers]

    @property
    def memory(self) -> int:
        """Planned device memory, the largest of all phases, bytes."""
        return max((p.memory for p in self.phases.values()), default=0)


def compile_graph(graph: Graph, python: Path, cann: Cann, tell: Callable[[str], None] = lambda _: None) -> Compiled:
    """Compiles a graph in a process of its own.

    Args:
        graph: what.
        python: interpreter of the MindSpore environment.
        cann: the libraries.
        tell: takes a line about what begins.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="npd-compile-") as name:
        folder = Path(name)
        (folder / "graph.json").write_text(json.dumps(asdict(graph)))
        log, result = folder / "log", folder / "result.json"
        with open(log, "w", errors="replace") as errors:
            child = subprocess.Popen(
                [str(python), "-m", "npd_ascend.ops.ascend.child", str(folder / "graph.json"), str(result)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                cwd=folder,
                env=cann.environment(python, graph.rank, graph.size),
            )
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    if line.startswith('{"begins"'):
                        tell(json.loads(line)["begins"])
                _end(child)
            except BaseException:
                child.kill()
                child.wait()
                raise
        out = Compiled(graph, [graph.layers], {}, time.monotonic() - started)
        with open(log, errors="replace") as lines:
            phases = read_log(lines)
        if not result.exists():
            out.failed, out.refused = _reason(log, child.returncode)
            return out
        try:
            read_collectives(folder, phases)
        except ValueError as e:
            out.failed = f"the compiler's output is not as expected: {e}"
            return out
        found = json.loads(result.read_text())
        phases.pop(IGNORED, None)
        for phase, memory in found["memory"].items():
            phases.setdefault(phase, Phase()).memory = memory
        out.phases, out.host = phases, found["host"]
        return out


def _end(child: subprocess.Popen[str]) -> None:
    """Waits for a process that is through. Its end is bad even when all went well, because MindSpore frees what the
    stand-ins never made, and now and then it has none."""
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _reason(log: Path, code: int) -> tuple[str, bool]:
    """The exception that a process ended with, or its signal; and whether it is the user's to mend."""
    lines = [x.strip() for x in log.read_text(errors="replace").splitlines() if not x.startswith(("[INFO", "[WARN"))]
    raised = [x for x in lines if x and x.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    if raised:
        ours = f"{UserError.__module__}.UserError: "
        return raised[-1].removeprefix(ours)[:500], raised[-1].startswith(ours)
    if code == -9:
        return "killed, most likely because the host has no memory left", False
    return next((x for x in reversed(lines) if x), f"ended with {code}")[:500], False
