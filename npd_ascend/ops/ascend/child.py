"""Compiles the graphs of a ``Graph`` in a dry run: ``python -m npd_ascend.ops.ascend.child GRAPH.json RESULT.json``.

The environment is that of ``cann``. Standard output tells what begins; the compiler's log, with lines of our own that
say which phase it is in, goes to standard error. The result holds planned device memory by phase.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from npd_ascend.annotate.head import ChunkedHead
from npd_ascend.config.job import Device
from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.compile_cache import Graphs
from npd_ascend.models.network import build
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.weights import load_hf
from npd_ascend.objectives.inputs import LossInputs
from npd_ascend.ops.ascend.graphs import Graph
from npd_ascend.ops.ascend.output import PHASE
from npd_ascend.rows.collate import RowBatch, collate
from npd_ascend.train.lag import Divergence
from npd_ascend.train.reader import MicroBatch, loss_shape
from npd_ascend.train.step import Trainer


class Phases:
    """Says which phase is compiled, and measures the memory of each.

    Attributes:
        memory: peak of planned device memory by phase, bytes.
    """

    def __init__(self) -> None:
        self.memory: dict[str, int] = {}

    def begin(self, name: str) -> None:
        """What is compiled from now on belongs to this phase."""
        sys.stdout.write(json.dumps({"begins": name}) + "\n")
        sys.stdout.flush()
        os.write(2, f"{PHASE}{name}\n".encode())  # past any buffer, so that it is between the compiler's lines

    def measure(self, name: str) -> None:
        """The peak since the last measurement is this phase's."""
        self.memory[name] = int(ms.runtime.max_memory_allocated())
        ms.runtime.reset_max_memory_allocated()


class Announced(Graphs):
    """Compiles the two graphs of training, each as a phase."""

    def __init__(self, phases: Phases):
        super().__init__("train", None, {})
        self._phases = phases

    def compile(self, cell: nn.Cell, *inputs: Any) -> None:
        name = {"Accumulate": "micro-batch", "Update": "step"}[type(cell).__name__]
        self._phases.begin(name)
        super().compile(cell, *inputs)


def trainer_of(graph: Graph, mesh: DeviceMesh, batch: RowBatch, checkpoint: Path | None) -> tuple[Trainer, MicroBatch]:
    """What trains in a graph, and a micro-batch of these rows with as many loss rows as there can be.

    Args:
        graph: of training.
        mesh: ranks of it.
        batch: as many rows as a micro-batch has.
        checkpoint: folder of the weights; None: they stay as they were made.
    """
    k, settings = graph.settings["k"], {n: v for n, v in graph.settings.items() if n != "k"}
    s, device = TrainConfig.model_validate(settings), Device.model_validate(graph.device)
    net = build(graph.spec, device, graph.row_length, group=mesh.model, context=mesh.context)
    if checkpoint is not None:
        load_hf(net, checkpoint)
    if s.recompute:
        net.recompute_layers()
    if s.optimizer_sharding:
        net.hold_in_compute_type()
    positions = s.micro_batch * graph.row_length // s.context_parallel
    rows, chunk = loss_shape(positions, positions, s.vocab_chunk_rows)
    trainer = Trainer(net, s, chunk, mesh.replicas)
    return trainer, _micro_batch(trainer, batch, rows, k)


def train(graph: Graph, phases: Phases) -> None:
    """Training and lag: one network."""
    s, device = graph.settings, Device.model_validate(graph.device)
    mesh = DeviceMesh(device, s["tensor_parallel"], s["context_parallel"])
    batch = _rows(graph, s["micro_batch"])
    trainer, given = trainer_of(graph, mesh, batch, None)
    net = trainer.net
    trainer.compile(given, Announced(phases))
    trainer.accumulate(given, 1)
    phases.measure("micro-batch")
    trainer.update(1e-5, 1)
    phases.measure("step")
    phases.begin("lag")  # last, for the optimizer's state is there while it is measured
    rows = min(s["vocab_chunk_rows"], given.rows.input_ids.size // s["context_parallel"])
    net(*net.inputs(batch))
    hidden = ms.Tensor(np.zeros((rows, graph.spec.hidden_size), np.float32))
    old = ms.Tensor(np.zeros(net.head_weight.shape, np.float32))
    counts = ms.Tensor(np.zeros(rows, np.float32))
    Divergence(graph.vocabulary, mesh.model)(hidden, net.head_weight, hidden, old, counts)
    phases.measure("lag")


def annotate(graph: Graph, phases: Phases) -> None:
    """The forward pass, and the head on one chunk: with the best ids where they are kept, and without."""
    s, device = graph.settings, Device.model_validate(graph.device)
    mesh = DeviceMesh(device, s["tensor_parallel"])
    net = build(graph.spec, device, graph.row_length, params_dtype=device.dtype, group=mesh.model)
    chunk = min(s["vocab_chunk_rows"], s["micro_batch"] * graph.row_length)
    head = ChunkedHead(net.head_weight, chunk, on_host=False, group=mesh.model, vocabulary=graph.vocabulary)
    phases.begin("forward")
    hidden = net(*net.inputs(_rows(graph, s["micro_batch"])))
    at = np.arange(chunk, dtype=np.int32)
    for k in sorted({0, s["k"]}):
        phases.begin("head with top-k" if k else "head")
        head(hidden, at, at * 0, k)
    phases.measure("forward")


def _rows(graph: Graph, batch: int) -> RowBatch:
    return collate([[np.zeros(1, np.int32)]], graph.row_length, 0, batch)


def _micro_batch(trainer: Trainer, rows: RowBatch, n: int, k: int) -> MicroBatch:
    """``n`` loss rows of whatever the loss looks at."""
    m = len(trainer.loss.terms)
    floats = {
        "weights": (n, m),
        "parameters": (n, m),
        "teacher_logprobs": (n, k),
        "teacher_labels": (n,),
        "rollout_logprobs": (n,),
        "advantages": (n,),
    }
    inputs: dict[str, Any] = {name: np.ones(shape, np.float32) for name, shape in floats.items()}
    inputs |= {"labels": np.zeros(n, np.int32), "teacher_ids": np.zeros((n, k), np.int32)}
    positions = np.arange(n, dtype=np.int32) % rows.input_ids.size
    return MicroBatch(rows, positions, LossInputs(**inputs), n, np.zeros(1, np.int64))


def main() -> None:
    """Writes the result, closes standard output, and leaves the rest to MindSpore's own end, which writes the order of
    collectives. After an error nothing is left to write, and that end, which may hang, is left out."""
    graph = Graph(**json.loads(Path(sys.argv[1]).read_text()))
    phases = Phases()
    try:
        (train if graph.stage == "train" else annotate)(graph, phases)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(sys.argv[2]).write_text(json.dumps({"memory": phases.memory, "host": host}))
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
