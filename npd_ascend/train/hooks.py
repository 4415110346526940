"""What a generation of training works with, which a worker keeps for the next one."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mindspore import nn

from npd_ascend.models.compile_cache import Graphs, network_key
from npd_ascend.models.network import build
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.spec import ModelSpec
from npd_ascend.train.checkpoint import Checkpoints, State
from npd_ascend.train.job import TrainJob
from npd_ascend.train.lag import Divergence
from npd_ascend.train.reader import Reader
from npd_ascend.train.step import Trainer


class TrainHooks:
    """Mesh, trainer, lag measure and checkpoints of one process, and who looks on.

    Attributes:
        align: head rows are a multiple of this; a large one lets many generations share compiled graphs.
    """

    align = sys.maxsize
    _mesh: DeviceMesh | None = None
    _divergence: tuple[int | None, nn.Cell] | None = None
    _kept: tuple[Any, Trainer, Graphs] | None = None

    def mesh(self, job: TrainJob) -> DeviceMesh:
        """The processes that train; it is theirs for good."""
        s = job.settings
        self._mesh = self._mesh or DeviceMesh(job.device, s.tensor_parallel, s.context_parallel)
        return self._mesh

    def trainer(self, job: TrainJob, spec: ModelSpec, reader: Reader, mesh: DeviceMesh) -> Trainer:
        """Network and optimiser with zero moments, those of the generation before where nothing but the data differs;
        the weights are loaded afterwards.

        Args:
            job: what will be trained.
            spec: its architecture.
            reader: of the generation; shapes of its batches.
            mesh: the processes that train.
        """
        key = (repr(spec), job.device, job.settings, job.row_length, job.longest, reader.chunk)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # its memory first
            self._kept = key, *self._build(job, spec, reader, mesh)
        _, trainer, graphs = self._kept
        trainer.reset()
        plan = reader.plans[0]
        batch = reader.make(plan, len(plan), len(plan))
        graphs.compile(trainer.net, *trainer.net.inputs(batch.rows))
        trainer.compile(batch, graphs)
        return trainer

    def _build(self, job: TrainJob, spec: ModelSpec, reader: Reader, mesh: DeviceMesh) -> tuple[Trainer, Graphs]:
        net = build(spec, job.device, job.row_length, group=mesh.model, context=mesh.context, bound=job.longest)
        if job.settings.recompute:
            net.recompute_layers()
        if job.settings.optimizer_sharding:
            net.hold_in_compute_type()
        trainer = Trainer(net, job.settings, reader.chunk, mesh.replicas)
        # Beside the shapes of a batch, which the graphs' identities have in them anyway.
        graphs = Graphs(
            "train",
            job.compiled,
            network_key(spec, job.device, settings=job.settings.model_dump(mode="json"), chunk=reader.chunk),
        )
        return trainer, graphs

    def divergence(self, spec: ModelSpec, mesh: DeviceMesh) -> nn.Cell:
        """What computes the lag of a chunk of rows."""
        if self._divergence is None or self._divergence[0] != spec.vocabulary:
            self._divergence = spec.vocabulary, Divergence(spec.vocabulary, mesh.model)
        return self._divergence[1]

    def measuring(self) -> AbstractContextManager[Any]:
        """Held open while lag is measured."""
        return nullcontext()

    def checkpoints(self, job: TrainJob) -> Checkpoints:
        """Where checkpoints go."""
        return Checkpoints(job.checkpoints, job.settings.keep_checkpoints)

    def stepped(self, state: State, trainer: Trainer) -> None:
        """Told after every optimiser step."""
