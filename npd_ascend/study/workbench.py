"""What one process keeps between arms: compiled networks, rollout engines, loaded scorers, earlier answers.

A compiled graph belongs to its network and shapes, not to its weights, so arms that differ in data, filter or seed
only train in the same one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from npd_ascend.annotate.prefill import Scorer
from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.config.schema import AnnotateConfig, TrainConfig
from npd_ascend.exposure.divergence import HiddenStates, PairScorer
from npd_ascend.models.attention import window_of
from npd_ascend.models.network import CausalLM, build
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf
from npd_ascend.objectives.registry import summands
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.live import LiveBatch
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.study.clock import Clock
from npd_ascend.study.prefill import Prefill
from npd_ascend.train.adamw import AdamW
from npd_ascend.train.checkpoint import Checkpoints, State
from npd_ascend.train.hooks import TrainHooks
from npd_ascend.train.job import TrainJob
from npd_ascend.train.lag import Divergence
from npd_ascend.train.reader import Reader
from npd_ascend.train.step import Trainer

_ALIGN = 512


class Workbench(TrainHooks):
    """Engines of one process.

    Args:
        rollout_python: interpreter of the rollout environment.
        logs: folder for the engines' logs.
        env: environment of the engines.

    Attributes:
        clock: of the arm at work; compilation and start-up are booked aside there.
        watch: called after every optimiser step.
    """

    align = _ALIGN

    def __init__(self, rollout_python: Path, logs: Path, env: dict[str, str]):
        self._python, self._logs, self._env = rollout_python, logs, env
        self.clock = Clock()
        self.watch: Callable[[State, Trainer], None] | None = None
        self._trainers: dict[Any, Trainer] = {}
        self._scorers: dict[Any, Scorer] = {}
        self._nets: dict[Any, CausalLM] = {}
        self._prefills: dict[int, Prefill] = {}
        self._pairs: dict[Any, PairScorer] = {}
        self._states: dict[str, HiddenStates] = {}
        self._compiled: set[Any] = set()
        self._pools: dict[str, RolloutPool] = {}
        self._divergences: dict[int, nn.Cell] = {}
        self._names = itertools.count()

    def close(self) -> None:
        """Ends the engines."""
        for pool in self._pools.values():
            pool.close()

    # ---- answers

    def pool(self, model: Path) -> RolloutPool:
        """The engine for checkpoints of this one's architecture, started when first asked for."""
        key = repr(ModelSpec.from_folder(model))
        if key not in self._pools:
            name = f"engine-{next(self._names)}"
            self._pools[key] = RolloutPool(self._python, 1, self._logs / name, env=self._env)
        return self._pools[key]

    def dismiss(self, model: Path, other: Path) -> None:
        """Ends the engine for ``model``, for the sake of its memory, unless it serves ``other`` too."""
        key = repr(ModelSpec.from_folder(model))
        if key in self._pools and key != repr(ModelSpec.from_folder(other)):
            self._pools.pop(key).close()

    def answer(self, job: RolloutJob, prompts: Sequence[Array], seeds: Sequence[int | None]) -> LiveBatch:
        """Answers of ``job.model``."""
        return self.pool(job.model).answer(job, prompts, seeds)

    def ready(self, job: RolloutJob, prompt: Array) -> None:
        """Starts the engine of ``job.model`` and lets it answer once in each mode, booked aside."""
        with self.clock.on("start"):
            for seed in (None, 1):
                self.answer(job, [prompt], [seed])

    # ---- networks

    def network(
        self, model: Path, spec: ModelSpec, device: Device, row_length: int, bound: int | None, role: str = "inference"
    ) -> CausalLM:
        """A network for inference with the weights of a checkpoint, which are its weights until the next call.

        Args:
            model: checkpoint.
            spec: its architecture.
            device: where it runs.
            row_length: longest rows.
            bound: of ``models.network.build``.
            role: networks of different roles are never the same one.
        """
        net = self._network(spec, device, row_length, bound, role)
        load_hf(net, model)
        return net

    def _network(self, spec: ModelSpec, device: Device, row_length: int, bound: int | None, role: str) -> CausalLM:
        key = (repr(spec), device, row_length, _reach(bound, row_length), role)
        if key not in self._nets:
            with self.clock.on("compile"):
                self._nets[key] = build(spec, device, row_length, params_dtype=device.dtype, bound=bound)
        return self._nets[key]

    def pair(self, student: CausalLM, other: CausalLM, micro_batch: int) -> PairScorer:
        """Compares two networks.

        Args:
            student, other: the networks; their weights count when the comparison is called.
            micro_batch: rows a pass.
        """
        key = (id(student), id(other), micro_batch)
        if key not in self._pairs:
            self._pairs[key] = PairScorer(student, other, micro_batch)
        return self._pairs[key]

    def states(self, weights: str) -> HiddenStates:
        """Remembered hidden states of the model whose weights have that identity."""
        return self._states.setdefault(weights, HiddenStates())

    def prefill(self, net: CausalLM) -> Prefill:
        """Asks ``net`` for distributions."""
        return self._prefills.setdefault(id(net), Prefill(net))

    def once(self, key: Any, work: Callable[[], Any]) -> None:
        """Does what compiles a graph, the first time, booked aside."""
        if key not in self._compiled:
            with self.clock.on("compile"):
                work()
            self._compiled.add(key)

    def live_trainer(
        self,
        spec: ModelSpec,
        device: Device,
        row_length: int,
        bound: int | None,
        settings: TrainConfig,
        chunk: int,
        whole_vocabulary: bool = False,
    ) -> Trainer:
        """A trainer with zero moments; the weights are loaded by the caller. ``bound``: of ``models.network.build``;
        ``whole_vocabulary``: of ``ChunkedLoss``."""
        loss = settings.loss
        compiled = (
            tuple(summands(loss)),
            loss.topk_norm,
            settings.beta1,
            settings.beta2,
            settings.eps,
            settings.weight_decay,
            settings.clip,
            settings.recompute,
        )
        key = (repr(spec), device, row_length, _reach(bound, row_length), chunk, compiled, whole_vocabulary)
        if key not in self._trainers:
            with self.clock.on("compile"):
                net = build(spec, device, row_length, bound=bound)
                if settings.recompute:
                    net.recompute_layers()
                self._trainers[key] = Trainer(net, settings, chunk, whole_vocabulary=whole_vocabulary)
        trainer = self._trainers[key]
        trainer.reset()
        return trainer

    # ---- what training asks of its bench

    def trainer(self, job: TrainJob, spec: ModelSpec, reader: Reader, mesh: DeviceMesh) -> Trainer:
        trainer = self.live_trainer(spec, job.device, job.row_length, job.longest, job.settings, reader.chunk)
        plan = reader.plans[0]
        empty = reader.make(plan, len(plan), len(plan))

        def compile_() -> None:
            trainer.accumulate(empty, 1)
            trainer.update(0.0, 1)
            trainer.reset()

        window = trainer.net.window(empty.rows)
        shapes = (job.settings.micro_batch, reader.head_rows, None if window is None else window.shape, reader.k)
        self.once((id(trainer), *shapes), compile_)
        return trainer

    def divergence(self, spec: ModelSpec, mesh: DeviceMesh) -> nn.Cell:
        return self._divergences.setdefault(spec.vocabulary, Divergence(spec.vocabulary))

    def measuring(self) -> AbstractContextManager[Any]:
        return self.clock.on("lag")

    def checkpoints(self, job: TrainJob) -> Checkpoints:
        return _Ends(job.checkpoints, 1)

    def stepped(self, state: State, trainer: Trainer) -> None:
        if self.watch is not None:
            self.watch(state, trainer)

    # ---- what annotation asks for

    def scorer(
        self, model: Path, spec: ModelSpec, settings: AnnotateConfig, device: Device, bound: int | None = None, **_: Any
    ) -> Scorer:
        """A scorer with the weights of ``model``, for ``annotate.stage.run``; graphs live as long as this process."""
        net = self._network(spec, device, settings.row_length, bound, "inference")
        key = (id(net), settings.micro_batch, settings.vocab_chunk_rows)
        if key in self._scorers:
            self._scorers[key].load(model)
        else:
            with self.clock.on("compile"):
                self._scorers[key] = Scorer(
                    model, spec, settings, device, compiling=lambda: self.clock.on("compile"), net=net
                )
                # The two shapes of the head, a whole chunk and what is left of one, in rows like those to come.
                row = settings.row_length
                each = row // -(-row // min(bound or row, row))
                whole = settings.micro_batch * (row // each)
                for count, tokens in ((whole, each), (1, 1)):
                    context, response = np.zeros(each + 1 - tokens, np.int32), np.zeros(tokens, np.int32)
                    self._scorers[key].score([context] * count, [response] * count, 0)
        return self._scorers[key]


def _reach(bound: int | None, row_length: int) -> int:
    """What of a bound a network's graphs depend on."""
    window = window_of(bound, row_length) if bound else ()
    return row_length if window is None else len(window)


class _Ends(Checkpoints):
    """Keeps the ends of generations only: an arm that was interrupted is run again as a whole."""

    def save(self, state: State, optimizer: AdamW, leads: bool = True) -> None:
        if state.ended:
            super().save(state, optimizer, leads)
