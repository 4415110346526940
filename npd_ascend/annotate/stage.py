"""The stage: what one model says of all rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from npd_ascend import progress
from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.config.schema import AnnotateConfig
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.rows.masks import written
from npd_ascend.store.claims import Claims
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import weights_stamp
from npd_ascend.store.ragged import Ragged
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk

if TYPE_CHECKING:
    from npd_ascend.annotate.prefill import Scorer
    from npd_ascend.models.parallel.mesh import DeviceMesh


Load = Callable[..., "Scorer"]
_BEAT_S = 0.5


class Kept:
    """The model of a worker, loaded and compiled, for its next job."""

    def __init__(self) -> None:
        self._key: Any = None
        self._scorer: Scorer | None = None
        self._weights: Any = None
        self._mesh: DeviceMesh | None = None

    def mesh(self, job: AnnotateJob) -> DeviceMesh | None:
        """The processes that hold the model together; None: this one alone. Starts the engine."""
        if job.settings.tensor_parallel > 1 and self._mesh is None:
            from npd_ascend.models.parallel.mesh import DeviceMesh

            self._mesh = DeviceMesh(job.device, job.settings.tensor_parallel)
        return self._mesh

    def __call__(self, model: Any, spec: ModelSpec, settings: AnnotateConfig, device: Device, **more: Any) -> Scorer:
        """A scorer with the weights of ``model``: that of the job before, where only the weights differ."""
        from npd_ascend.annotate.prefill import Scorer

        progress.started("annotate")
        begin = time.monotonic()
        key = (repr(spec), settings.model_dump_json(), device, more["bound"])
        weights = weights_stamp(model)
        if self._scorer is None or key != self._key:
            self._scorer = None  # its memory first
            self._scorer, self._key = Scorer(model, spec, settings, device, **more), key
        elif weights != self._weights:
            self._scorer.load(model)
        self._weights = weights
        progress.spent("annotate", "load", time.monotonic() - begin)
        return self._scorer


def run(job: AnnotateJob, load: Load | None = None) -> None:
    """Makes what is missing of what the job asks for, in one forward pass a context, shard by shard that no other
    worker has claimed.

    Whichever worker finds all shards there commits the datasets. A shard of rollouts makes a shard of each, packed from
    its own samples only, so a shard that is made again is identical, and what exists is not computed again because
    something beside it is missing. With ``tensor_parallel`` a worker is a group of processes under msrun: all compute,
    the first claims and writes.

    Args:
        job: what to make.
        load: makes the loaded model; None: a new ``Scorer``.

    Raises:
        UserError: an input does not fit the model or the settings.
        CorruptShard: an input shard is damaged.
    """
    load = load or Kept()
    out = job.outputs()
    if job.settings.tensor_parallel == 1 and all(d.complete for d in out.values()):
        return
    mesh = load.mesh(job) if isinstance(load, Kept) else None
    if mesh is not None and mesh.schedules:
        return
    leads = mesh is None or mesh.leads
    rollouts, prompts = Dataset.open(job.rollouts, "rollouts"), Dataset.open(job.prompts, "prompts")
    annotator = _Annotator(job, np.asarray(prompts.extra["header_ids"], np.int32), load, mesh)
    missing = {i for d in out.values() for i in d.missing(rollouts.shards)}
    claims = Claims(job.own, missing) if leads else None
    for index, wanted in _todo(out, claims, mesh):
        table = rollouts.read(index, ["sample_id", "prompt_index", "response_ids", "logprobs", "masked"])
        questions = prompts.read(index, ["prompt_index", "prompt_ids"])
        made = annotator.shard(table, questions, wanted, _Report(index, len(table), leads))
        if claims is not None:
            _write(out, index, made, annotator.form)
            claims.release(index)
    if claims is not None:
        _finish(job, out, rollouts.shards)
    if mesh is not None:
        mesh.wait()  # nobody leaves before the last shard is written


def _todo(out: dict[str, Dataset], claims: Claims | None, mesh: DeviceMesh | None) -> Iterator[tuple[int, set[str]]]:
    """Number of each shard that is this worker's, and what is missing of it.

    Of a group the first process claims and looks for all: others may see a file that has appeared in the meantime.
    """
    names = list(out)
    taken = _claimed(out, claims) if claims is not None else iter(())
    while True:
        index, wanted = next(taken, (-1, set()))
        if mesh is not None:
            index, *flags = mesh.agree(np.array([index, *(n in wanted for n in names)], np.float32)).astype(int)
            wanted = {n for n, flag in zip(names, flags, strict=True) if flag}
        if index < 0:
            return
        yield int(index), wanted


def _claimed(out: dict[str, Dataset], claims: Claims) -> Iterator[tuple[int, set[str]]]:
    while (index := claims.take()) is not None:
        wanted = {what for what, d in out.items() if d.record(index) is None}
        if wanted:
            yield index, wanted
        else:
            claims.release(index)  # of a worker that was lost just after it had made it


def _write(out: dict[str, Dataset], index: int, made: dict[str, Any], form: TopKFormat) -> None:
    for what, content in made.items():
        if what == "topk":
            write_topk(out[what], index, form, content)
        else:
            out[what].write_table(index, content, tokens=int(np.sum(content["tokens"])))


def _finish(job: AnnotateJob, out: dict[str, Dataset], shards: int) -> None:
    if any(d.missing(shards) for d in out.values()):
        return  # another worker is still at it
    for what, dataset in out.items():
        extra = {"k": job.settings.k, "vocab_size": job.vocabulary, "value_bits": job.settings.value_bits}
        if not dataset.complete:
            dataset.finish(shards, role=job.role, model=str(job.model), **(extra if what == "topk" else {}))


class _Report:
    """Reports how far a shard is while it is in the making, by the samples that forward passes have taken in."""

    def __init__(self, index: int, rows: int, leads: bool):
        self._index, self._rows, self._leads = index, rows, leads
        self.passes = 1
        self._passed = self._told = self._tokens = 0
        self._last = time.monotonic()

    def __call__(self, samples: int, tokens: int) -> None:
        """A forward pass over so many samples is done."""
        self._passed, self._tokens = self._passed + samples, self._tokens + tokens
        if time.monotonic() - self._last >= _BEAT_S:
            self._tell(self._passed // self.passes)

    def close(self) -> None:
        """All samples are done."""
        self._tell(self._rows)

    def _tell(self, samples: int) -> None:
        if self._leads:
            progress.have({self._index: samples}, samples - self._told, self._tokens)
        self._told, self._tokens, self._last = samples, 0, time.monotonic()


class _Annotator:
    """One model with what it needs to annotate shard after shard; the engine starts when first needed."""

    def __init__(self, job: AnnotateJob, header: Array, load: Load, mesh: DeviceMesh | None):
        self.job, self.header, self._load = job, header, load
        self._more: dict[str, Any] = {"compiled": job.compiled, "bound": job.longest}
        if mesh is not None:
            self._more["group"] = mesh.model
        self.spec = ModelSpec.from_folder(job.model).sharing(job.vocabulary, job.model)
        k = job.settings.k if job.topk else 0
        if k > job.vocabulary:
            raise UserError(f"annotate.k is {k} but the vocabulary has {job.vocabulary} ids; lower it")
        self.form = TopKFormat(max(k, 1), job.vocabulary, job.settings.value_bits)
        self._from_rollout = job.role == "student" and job.settings.student_nll == "rollout"
        self._scorer: Scorer | None = None

    def shard(self, rollouts: pa.Table, prompts: pa.Table, wanted: set[str], report: _Report) -> dict[str, Any]:
        """What is wanted of a shard: a table of ``scores`` or ``unconditioned``, a list of ``topk``."""
        responses = _lists(rollouts["response_ids"], np.int32)
        contexts = self._contexts(rollouts, prompts)
        self._check(contexts, responses)
        out: dict[str, Any] = {}
        report.passes = bool(wanted - {"unconditioned"}) + ("unconditioned" in wanted)
        if "topk" in wanted:
            after = self.scorer.score(contexts, responses, self.job.settings.k, report)
            out["topk"] = after
            if "scores" in wanted:
                out["scores"] = _table(rollouts, responses, after)
        elif "scores" in wanted:
            out["scores"] = _table(rollouts, responses, self._scores(rollouts, contexts, responses, report))
        if "unconditioned" in wanted:
            alone = self.scorer.score([self.header] * len(responses), responses, 0, report)
            out["unconditioned"] = _table(rollouts, responses, alone)
        report.close()
        return out

    def _scores(
        self, rollouts: pa.Table, contexts: list[Array], responses: list[Array], report: _Report
    ) -> list[TopK | Array]:
        """Each response after its prompt: annotated, or just the log-probs that its rollout has left."""
        n = len(responses)
        stored: list[Any] = _lists(rollouts["logprobs"], np.float32) if self._from_rollout else [None] * n
        # Reference answers come without log-probs.
        asked = [i for i in range(n) if stored[i] is None]
        if asked:
            annotated = self.scorer.score([contexts[i] for i in asked], [responses[i] for i in asked], 0, report)
            for i, one in zip(asked, annotated, strict=True):
                stored[i] = one
        return stored

    @property
    def scorer(self) -> Scorer:
        """The loaded model."""
        if self._scorer is None:
            job = self.job
            self._scorer = self._load(job.model, self.spec, job.settings, job.device, **self._more)
        return self._scorer

    def _contexts(self, rollouts: pa.Table, prompts: pa.Table) -> list[Array]:
        ids = _lists(prompts["prompt_ids"], np.int32)
        place = {p: i for i, p in enumerate(prompts["prompt_index"].to_pylist())}
        try:
            return [ids[place[p]] for p in rollouts["prompt_index"].to_pylist()]
        except KeyError as e:
            raise UserError(
                f"{self.job.rollouts}: answers prompt {e.args[0]}, which is not in the same shard of "
                f"{self.job.prompts}; use a new run.dir"
            ) from None

    def _check(self, contexts: list[Array], responses: list[Array]) -> None:
        vocab = self.job.vocabulary
        for what, lists in (("prompt", contexts), ("response", responses), ("header", [self.header])):
            top = max((int(x.max()) for x in lists if len(x)), default=-1)
            if top >= vocab:
                raise UserError(
                    f"{self.job.rollouts}: a {what} holds token id {top} but the vocabulary has {vocab} "
                    f"ids; teacher and student must share a tokenizer"
                )
        longest = max((len(c) + len(r) for c, r in zip(contexts, responses, strict=True)), default=0)
        longest = max(longest, max(map(len, responses), default=0) + len(self.header))
        if longest > self.job.settings.row_length:
            raise UserError(
                f"a prompt and response have {longest} tokens but annotate.row_length is "
                f"{self.job.settings.row_length}: raise it to at least that"
            )


def _table(rollouts: pa.Table, responses: list[Array], found: Sequence[TopK | Array]) -> pa.Table:
    """Rows of ``store.schemas.SCORES``; of a response with log-probs alone the entropy is not known."""
    at = _written(rollouts["masked"], responses)
    sampled = [f if isinstance(f, np.ndarray) else f.sampled for f in found]
    return pa.table(
        {
            "sample_id": rollouts["sample_id"],
            "tokens": pa.array([int(w.sum()) for w in at], pa.int32()),
            "nll": [-_mean(x[w]) for x, w in zip(sampled, at, strict=True)],
            "entropy": [
                np.nan if isinstance(f, np.ndarray) else _mean(f.entropy[w]) for f, w in zip(found, at, strict=True)
            ],
        }
    )


def _written(masked: pa.ChunkedArray, responses: list[Array]) -> list[Array]:
    """[T] bool of each response: the tokens that its model wrote, of which the scores speak."""
    counts = np.fromiter(map(len, responses), np.int64, len(responses))
    flat = written(Ragged.of(masked), np.arange(len(responses)), counts)
    return np.split(flat, np.cumsum(counts)[:-1]) if len(counts) else []


def _lists(column: pa.ChunkedArray, dtype: type) -> list[Any]:
    """A list column as numpy arrays without copies; null stays None."""
    out: list[Array | None] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        offsets = chunk.offsets.to_numpy()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        out += [values[a:b] if ok else None for a, b, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)]
    return out


def _mean(values: Array) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")
