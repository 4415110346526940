"""The loop over optimiser steps of one generation: when to measure, checkpoint, snapshot and end."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np

from npd_ascend import progress
from npd_ascend.errors import UserError
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.metrics import MetricsWriter
from npd_ascend.sync.registry import Moment
from npd_ascend.sync.registry import find as sync_policy
from npd_ascend.train.checkpoint import Checkpoints, NotFinite, State
from npd_ascend.train.hooks import TrainHooks
from npd_ascend.train.job import TrainJob
from npd_ascend.train.lag import LagProbe
from npd_ascend.train.outcome import Outcome
from npd_ascend.train.reader import MicroBatch, Reader, ahead
from npd_ascend.train.schedule import EPSILON, Place, Timeline, learning_rate
from npd_ascend.train.step import Trainer


class Generation:
    """Trains from ``state`` to the end of its generation.

    Args:
        job: what to do.
        state: where training is; changed in place.
        mesh, reader, trainer, probe, checkpoints, outcome: the parts, loaded for that state.
        hooks: called after every optimiser step, and when lag is measured.
    """

    def __init__(
        self,
        job: TrainJob,
        state: State,
        mesh: DeviceMesh,
        reader: Reader,
        trainer: Trainer,
        probe: LagProbe,
        checkpoints: Checkpoints,
        outcome: Outcome,
        hooks: TrainHooks,
    ):
        self.job, self.state, self.mesh, self.reader, self.trainer = job, state, mesh, reader, trainer
        self.probe, self.checkpoints, self.outcome = probe, checkpoints, outcome
        self.hooks = hooks
        self.metrics = MetricsWriter(job.metrics)
        self.timeline = Timeline(job.start_progress, reader.steps)
        self.policy = sync_policy(job.sync, job.settings.epochs)
        # Of a start from elsewhere there is none; those of runs are exported with theirs.
        self._written_at = int((read_sealed(job.snapshot.with_suffix(".json")) or {}).get("step") or 0)
        self._ages = any(s.term.needs_samples for s in trainer.loss.terms)

    def run(self) -> None:
        """Trains, and leaves the last checkpoint, the snapshot and ``done.json``."""
        if not self.state.ended:
            self._train()
        self._export()
        if self.mesh.leads:
            self.outcome.finish(self.state)
        self.mesh.wait()

    def _train(self) -> None:
        s = self.state
        if s.index == 0:
            self._measure()
        meter = progress.Meter("train", self._planned_steps(), "steps", done=s.index) if self.mesh.leads else None
        last = time.monotonic()
        for place, batches in ahead(self.timeline.from_step(s.index), self._prepare):
            if self._over():
                break
            loss = self._step(place, batches)
            now = time.monotonic()
            self._log(place, loss, now - last)
            last = now
            if meter:
                meter.advance(1, tokens=self.reader.row_tokens(place.epoch, place.batch), loss=round(loss["loss"], 4))
            self._after(place)
            self.hooks.stepped(s, self.trainer)
        if meter:
            meter.close()
        self._measure()
        if self.job.end_progress is None and not self.job.last and self._run_is_over():
            s.reason = "epochs"
        if s.snapshot_progress is None:
            s.snapshot_progress = s.progress
        s.ended = True
        self._checkpoint()

    # ---- one step

    def _prepare(self, place: Place) -> tuple[Place, list[MicroBatch]]:
        return place, list(self.reader.micro_batches(place.epoch, place.batch))

    def _step(self, place: Place, batches: list[MicroBatch]) -> dict[str, float]:
        """Means over the batch's tokens of ``loss``, ``ce``, ``kd``, ..., and the ``grad_norm``."""
        number = self.state.step + 1
        tokens = self.reader.tokens(place.epoch, place.batch)
        losses = [self.trainer.accumulate(b, tokens) for b in batches]
        bad = [b.samples for b, loss in zip(batches, losses, strict=True) if not np.isfinite(loss)]
        failed = self.mesh.sum(np.array([float(len(bad))]))[0] > 0
        if failed:
            samples = np.concatenate(bad) if bad else self.reader.samples(place.epoch, place.batch)
            raise self.outcome.stop_at_nan("loss", number, self.reader.corpus.sample_ids[samples])
        norm, sums = self.trainer.update(learning_rate(self.job.settings, place.end), number)
        if not np.isfinite(norm):
            samples = self.reader.samples(place.epoch, place.batch)
            raise self.outcome.stop_at_nan("gradient", number, self.reader.corpus.sample_ids[samples])
        return {name: value / max(1, tokens) for name, value in sums.items()} | {"grad_norm": norm}

    def _log(self, place: Place, loss: dict[str, float], seconds: float) -> None:
        s = self.state
        s.step, s.index, s.progress = s.step + 1, place.index + 1, place.end
        s.train = {
            "step": s.step,
            "progress": s.progress,
            "generation": s.generation,
            "lr": learning_rate(self.job.settings, place.end),
            **loss,
            "tokens": self.reader.tokens(place.epoch, place.batch),
            # Steps between the weights that this step began with and those that wrote its data.
            **({"age": s.step - 1 - self._written_at} if self._ages else {}),
        }
        if self.mesh.leads:
            self.metrics.log("train", **s.train, seconds=round(seconds, 4))

    def _after(self, place: Place) -> None:
        s, every = self.state, self.job.sync.lag_every
        if every and s.index % every == 0:
            self._measure()
        if s.end is None and not self.job.last:
            self._ask_policy()
        if s.snapshot_at is not None and s.snapshot_progress is None and s.progress >= s.snapshot_at - EPSILON:
            s.snapshot_progress = s.progress
            if not self._over():
                self._export()
        steps = self.job.settings.checkpoint_every
        if not self._over() and (place.ends_epoch or (steps and s.step % steps == 0)):
            self._checkpoint()

    # ---- ends

    def _over(self) -> bool:
        s = self.state
        return self._run_is_over() or (s.end is not None and s.progress >= s.end - EPSILON)

    def _run_is_over(self) -> bool:
        return self.state.progress >= self.job.settings.epochs - EPSILON

    def _planned_steps(self) -> int:
        end = self.state.end if self.state.end is not None else self.job.settings.epochs
        return self.timeline.steps_before(end)

    def _measure(self) -> None:
        """Measures and logs lag, once a step."""
        s = self.state
        if s.lag is None or s.lag["step"] != s.step or s.index == 0:
            with self.hooks.measuring():
                lag = self.probe.measure()
            if not np.isfinite([lag.forward, lag.reverse]).all():
                raise self._not_finite("lag")
            s.lag = {"step": s.step, **asdict(lag)}
            if self.mesh.leads:
                self.metrics.log("lag", **s.lag, progress=s.progress, generation=s.generation)

    def _ask_policy(self) -> None:
        """Whether the sync policy wants a refresh after this step."""
        s = self.state
        lag = s.lag if s.lag and s.lag["step"] == s.step else {}
        moment = Moment(s.generation, self.job.start_progress, s.progress, lag.get("forward"), lag.get("reverse"))
        if asked := self.policy.refresh(moment):
            s.reason, s.snapshot_at, s.end = asked.reason, s.progress, s.progress + self.job.sync.lead
            self._say(f"{asked.why} at epoch {s.progress:.2f}: refresh")

    def _say(self, text: str) -> None:
        if self.mesh.leads:
            progress.message(text)

    def _checkpoint(self) -> None:
        try:
            self.checkpoints.save(self.state, self.trainer.optimizer, self.mesh.leads)
        except NotFinite as e:
            raise self._not_finite(f"weight {e}") from None
        self.mesh.wait()

    def _export(self) -> None:
        """Writes the snapshot once: of a model that is cut, the processes that hold rank 0's copy do it together."""
        if self.mesh.replicas.rank == 0:
            self.outcome.export(self.trainer.net, self.state, self.mesh)

    def _not_finite(self, what: str) -> UserError:
        """The error of weights that the last step, or none yet, has spoilt."""
        done = next(self.timeline.from_step(self.state.index - 1)) if self.state.index else None
        samples = self.reader.samples(done.epoch, done.batch) if done else np.zeros(0, np.int64)
        return self.outcome.stop_at_nan(what, self.state.step, self.reader.corpus.sample_ids[samples])
