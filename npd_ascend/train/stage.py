"""The train stage: one generation, from the last checkpoint to the next refresh or the end of the run."""

from __future__ import annotations

from typing import Any

from npd_ascend import progress
from npd_ascend.errors import UserError
from npd_ascend.models.device_modules import MAX_SEGMENTS
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf
from npd_ascend.objectives.registry import asked
from npd_ascend.rows.slices import Slice
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.metrics import MetricsWriter
from npd_ascend.store.topk_shard import TopKReader
from npd_ascend.train.checkpoint import Checkpoints, State
from npd_ascend.train.corpus import Corpus, EpochPlan
from npd_ascend.train.generation import Generation
from npd_ascend.train.hooks import TrainHooks
from npd_ascend.train.job import TrainJob
from npd_ascend.train.lag import LagProbe
from npd_ascend.train.outcome import Outcome
from npd_ascend.train.reader import Reader

Kept = TrainHooks


def run(job: TrainJob, hooks: TrainHooks | None = None) -> None:
    """Trains one generation; afterwards ``job.out`` holds ``next/`` (the student, Hugging Face format) and
    ``done.json``, and a checkpoint marks the end. Resumes from the newest checkpoint that fits, bit for bit.

    Under msrun the processes are data x context x tensor-parallel ranks.

    Args:
        job: what to train.
        hooks: what to train with; None: made for this job.

    Raises:
        UserError: inputs that do not fit together, no checkpoint to go on from, or a loss that is not finite.
        CorruptShard: an input's checksum differs.
    """
    outcome = Outcome(job)
    if outcome.finished:
        return
    hooks = hooks or TrainHooks()
    mesh = hooks.mesh(job)
    if mesh.schedules:
        return
    progress.started("train")
    spec = ModelSpec.from_folder(job.student).sharing(job.vocabulary, job.student)
    reader = _reader(job, spec, mesh, hooks.align)
    checkpoints = hooks.checkpoints(job)
    state, fresh = _start(job, outcome, checkpoints)
    mesh.wait()  # nobody tidies up before all have read
    if mesh.leads:
        outcome.clear()
        checkpoints.drop_after(state.step)
        _drop_rows(MetricsWriter(job.metrics), job.generation, state.step, fresh)

    trainer = hooks.trainer(job, spec, reader, mesh)
    net = trainer.net
    load_hf(net, job.snapshot)
    with hooks.measuring():
        probe = LagProbe(net, reader, job.sync.probe_samples, mesh, hooks.divergence(spec, mesh))
    if state.step:
        checkpoints.load(state, trainer.optimizer)
    elif job.student != job.snapshot or trainer.optimizer.sharded:
        load_hf(net, job.student, trainer.optimizer.take)
    if fresh:
        state = _begin(job, state)
    elif mesh.leads:
        progress.message(f"train: resumes generation {job.generation} at step {state.step}")
    Generation(job, state, mesh, reader, trainer, probe, checkpoints, outcome, hooks).run()


def _reader(job: TrainJob, spec: ModelSpec, mesh: DeviceMesh, align: int) -> Reader:
    packs = Dataset.open(job.packs, "packs")
    corpus = Corpus(
        Dataset.open(job.prompts, "prompts"),
        Dataset.open(job.rollouts, "rollouts"),
        Dataset.open(job.selection, "selection"),
        asked(job.settings.loss),
    )
    plans = [EpochPlan.read(packs, e) for e in range(packs.shards)]
    if not plans or not len(plans[0]):
        raise UserError(f"{job.packs}: holds no rows to train on; see why select kept no samples")
    if packs.extra.get("row_length", job.row_length) != job.row_length:
        raise UserError(f"{job.packs}: rows of {packs.extra['row_length']} tokens, expected {job.row_length}")
    if job.settings.global_batch % (job.settings.micro_batch * mesh.data.size):
        raise UserError(
            f"train.global_batch {job.settings.global_batch} is not a multiple of micro_batch x processes "
            f"= {job.settings.micro_batch} x {mesh.data.size}"
        )
    topk = TopKReader(Dataset.open(job.topk, "topk")) if job.topk else None
    return Reader(
        corpus,
        plans,
        topk,
        job.settings,
        job.row_length,
        job.pad_token_id,
        job.vocabulary,
        mesh.data.rank,
        mesh.data.size,
        align,
        MAX_SEGMENTS if job.device.target == "ascend" else None,
        Slice(mesh.context.rank, mesh.context.size),
    )


def _start(job: TrainJob, outcome: Outcome, checkpoints: Checkpoints) -> tuple[State, bool]:
    """Where to go on from: this generation's newest checkpoint, or the end of the one before; and whether the
    generation is a fresh one."""
    before: State | None = None
    for state in checkpoints.valid():
        if state.generation == job.generation and state.fingerprint == job.fingerprint:
            # A snapshot taken in passing and lost since can only come from an earlier checkpoint.
            if (
                outcome.exported
                or state.snapshot_progress is None
                or (state.ended and state.snapshot_progress == state.progress)
            ):
                return state, False
        elif state.generation == job.generation - 1 and state.ended and before is None:
            before = state
    if job.generation == 0:
        return State(0, 0, 0, job.start_progress, job.fingerprint), True
    if before is None:
        raise UserError(
            f"{job.checkpoints}: no sound checkpoint of the end of generation {job.generation - 1}; delete "
            f"done.json of that generation's train folder to have it trained again"
        )
    return before, True


def _begin(job: TrainJob, before: State) -> State:
    return State(
        before.step,
        job.generation,
        0,
        job.start_progress,
        job.fingerprint,
        end=job.end_progress,
        snapshot_at=job.snapshot_progress,
    )


def _drop_rows(metrics: MetricsWriter, generation: int, step: int, fresh: bool) -> None:
    """Takes back rows of steps that will be done again."""

    def again(row: dict[str, Any]) -> bool:
        if row["kind"] not in ("train", "lag"):
            return False
        later = row.get("generation", 0) - generation
        return later > 0 or (fresh and later == 0) or row.get("step", -1) > step

    metrics.drop(again)
