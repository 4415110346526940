"""The stage: what one model says of all rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.progress import Meter, started
from npd_ascend.rows.masks import written
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.ragged import Ragged
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk

if TYPE_CHECKING:
    from npd_ascend.annotate.prefill import Scorer
    from npd_ascend.models.parallel.mesh import DeviceMesh


Load = Callable[..., "Scorer"]


def run(job: AnnotateJob, load: Load | None = None) -> None:
    """Makes what is missing of this worker's shards of what the job asks for, in one forward pass a context.

    Whichever worker finds all shards there commits the datasets. A shard of rollouts makes a shard of each, packed from
    its own samples only, so a shard that is made again is identical, and what exists is not computed again because
    something beside it is missing. With ``tensor_parallel`` a worker is a group of processes under msrun: all compute,
    the first writes.

    Args:
        job: what to make.
        load: makes the loaded model; None: a new ``Scorer``.

    Raises:
        UserError: an input does not fit the model or the settings.
        CorruptShard: an input shard is damaged.
    """
    out = {
        what: Dataset(t.folder, "topk" if what == "topk" else "scores", t.fingerprint)
        for what, t in job.targets.items()
    }
    if job.settings.tensor_parallel == 1 and all(d.complete for d in out.values()):
        return
    mesh = _mesh(job)
    if mesh is not None and mesh.schedules:
        return
    leads = mesh is None or mesh.leads
    rollouts, prompts = Dataset.open(job.rollouts, "rollouts"), Dataset.open(job.prompts, "prompts")
    shards = rollouts.shards
    todo = {what: [i for i in d.missing(shards) if i % job.settings.workers == job.worker] for what, d in out.items()}
    if mesh is not None:
        # What is missing is looked up by one for all: others may see a file that has appeared in the meantime.
        agreed = mesh.agree(np.stack([np.isin(np.arange(shards), i) for i in todo.values()]))
        todo = {what: np.flatnonzero(row).tolist() for what, row in zip(todo, agreed, strict=True)}
    sizes = [r["rows"] for r in rollouts.manifest["shards"]]
    annotator = _Annotator(job, np.asarray(prompts.extra["header_ids"], np.int32), load, mesh)
    mine, here = sum(sizes[job.worker :: job.settings.workers]), sorted({i for of in todo.values() for i in of})
    name = f"annotate {job.role}" + (f" {job.worker}" if job.settings.workers > 1 else "")
    with Meter(name, mine, "samples", mine - sum(sizes[i] for i in here), silent=not leads) as meter:
        for index in here:
            table = rollouts.read(index, ["sample_id", "prompt_index", "response_ids", "logprobs", "masked"])
            questions = prompts.read(index, ["prompt_index", "prompt_ids"])
            made = annotator.shard(table, questions, {what for what, of in todo.items() if index in of}, meter)
            if leads:
                _write(out, index, made, annotator.form)
    if mesh is not None:
        mesh.wait()  # nobody leaves before the last shard is written
    if not leads or any(d.missing(shards) for d in out.values()):
        return  # another worker is still at it
    for what, dataset in out.items():
        extra = {"k": job.settings.k, "vocab_size": job.vocabulary, "value_bits": job.settings.value_bits}
        dataset.finish(shards, role=job.role, model=str(job.model), **(extra if what == "topk" else {}))


def _write(out: dict[str, Dataset], index: int, made: dict[str, Any], form: TopKFormat) -> None:
    for what, content in made.items():
        if what == "topk":
            write_topk(out[what], index, form, content)
        else:
            out[what].write_table(index, content, tokens=int(np.sum(content["tokens"])))


def _mesh(job: AnnotateJob) -> DeviceMesh | None:
    """The processes that hold the model together; None: this one alone. Starts the engine."""
    if job.settings.tensor_parallel == 1:
        return None
    from npd_ascend.models.parallel.mesh import DeviceMesh

    return DeviceMesh(job.device, job.settings.tensor_parallel)


class _Annotator:
    """One model with what it needs to annotate shard after shard; the engine starts when first needed."""

    def __init__(self, job: AnnotateJob, header: Array, load: Load | None, mesh: DeviceMesh | None):
        self.job, self.header, self._load = job, header, load
        self._shared: dict[str, Any] = {} if mesh is None else {"group": mesh.model}
        self.spec = ModelSpec.from_folder(job.model).sharing(job.vocabulary, job.model)
        k = job.settings.k if job.topk else 0
        if k > job.vocabulary:
            raise UserError(f"annotate.k is {k} but the vocabulary has {job.vocabulary} ids; lower it")
        self.form = TopKFormat(max(k, 1), job.vocabulary, job.settings.value_bits)
        self._from_rollout = job.role == "student" and job.settings.student_nll == "rollout"
        self._scorer: Scorer | None = None

    def shard(self, rollouts: pa.Table, prompts: pa.Table, wanted: set[str], meter: Meter) -> dict[str, Any]:
        """What is wanted of a shard: a table of ``scores`` or ``unconditioned``, a list of ``topk``."""
        responses = _lists(rollouts["response_ids"], np.int32)
        contexts = self._contexts(rollouts, prompts)
        self._check(contexts, responses)
        out: dict[str, Any] = {}

        def done(tokens: int) -> None:
            meter.advance(0, tokens)

        if "topk" in wanted:
            after = self._scorer_of(meter).score(contexts, responses, self.job.settings.k, done)
            out["topk"] = after
            if "scores" in wanted:
                out["scores"] = _table(rollouts, responses, after)
        elif "scores" in wanted:
            out["scores"] = _table(rollouts, responses, self._scores(rollouts, contexts, responses, meter, done))
        if "unconditioned" in wanted:
            alone = self._scorer_of(meter).score([self.header] * len(responses), responses, 0, done)
            out["unconditioned"] = _table(rollouts, responses, alone)
        meter.advance(len(responses))
        return out

    def _scores(
        self,
        rollouts: pa.Table,
        contexts: list[Array],
        responses: list[Array],
        meter: Meter,
        done: Callable[[int], None],
    ) -> list[TopK | Array]:
        """Each response after its prompt: annotated, or just the log-probs that its rollout has left."""
        n = len(responses)
        stored: list[Any] = _lists(rollouts["logprobs"], np.float32) if self._from_rollout else [None] * n
        # Reference answers come without log-probs.
        asked = [i for i in range(n) if stored[i] is None]
        if asked:
            annotated = self._scorer_of(meter).score(
                [contexts[i] for i in asked], [responses[i] for i in asked], 0, done
            )
            for i, one in zip(asked, annotated, strict=True):
                stored[i] = one
        return stored

    def _scorer_of(self, meter: Meter) -> Scorer:
        """The loaded model; the meter leaves out what loading and compiling take."""
        if self._scorer is None:
            with meter.paused():
                load = self._load or self._engine(meter)
                self._scorer = load(self.job.model, self.spec, self.job.settings, self.job.device, **self._shared)
        return self._scorer

    def _engine(self, meter: Meter) -> Load:
        from npd_ascend.annotate.prefill import Scorer

        started("annotate")
        return partial(Scorer, compiling=meter.paused, compiled=self.job.compiled, bound=self.job.longest)

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
