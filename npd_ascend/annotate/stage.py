"""The stage: one model's scores of all rollouts and, for the teacher, its top-k."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from npd_ascend.config.jobs import AnnotateJob, Device
from npd_ascend.config.schema import AnnotateConfig
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.progress import Meter, started
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk

if TYPE_CHECKING:
    from npd_ascend.annotate.prefill import Scorer
    from npd_ascend.models.group import Group


def run(job: AnnotateJob, load: Callable[[Path, ModelSpec, AnnotateConfig, Device], Scorer] | None = None) -> None:
    """Makes what is missing of this worker's shards of ``job.out`` and ``job.topk_out``.

    Whichever worker finds all shards there commits the datasets. A shard of rollouts makes a shard of scores (and of
    top-k), packed from its own samples only, so a shard that is made again is identical. With ``tensor_parallel`` a
    worker is so many processes under msrun: all compute, the first writes.

    Args:
        job: what to score.
        load: makes the loaded model; None: a new ``Scorer``.

    Raises:
        UserError: an input does not fit the model or the settings.
        CorruptShard: an input shard is damaged.
    """
    scores = Dataset(job.out, "scores", job.fingerprint)
    topk = Dataset(job.topk_out, "topk", job.topk_fingerprint or job.fingerprint) if job.topk_out else None
    if job.settings.tensor_parallel == 1 and scores.complete and (topk is None or topk.complete):
        return
    group = _group(job)
    if group is not None and group.schedules:
        return
    leads = group is None or group.leads
    rollouts, prompts = Dataset.open(job.rollouts, "rollouts"), Dataset.open(job.prompts, "prompts")
    shards = rollouts.shards
    todo = [i for i in _missing(scores, topk, shards) if i % job.settings.workers == job.worker]
    if group is not None:
        # What is missing is looked up by one for all: others may see a file that has appeared in the meantime.
        todo = np.flatnonzero(group.agree(np.isin(np.arange(shards), todo))).tolist()
    sizes = [r["rows"] for r in rollouts.manifest["shards"]]
    annotator = _Annotator(job, np.asarray(prompts.extra["header_ids"], np.int32), load, group)
    mine = sum(sizes[job.worker :: job.settings.workers])
    name = f"annotate {job.role}" + (f" {job.worker}" if job.settings.workers > 1 else "")
    with Meter(name, mine, "samples", mine - sum(sizes[i] for i in todo), silent=not leads) as meter:
        for index in todo:
            table = rollouts.read(index, ["sample_id", "prompt_index", "response_ids", "logprobs"])
            questions = prompts.read(index, ["prompt_index", "prompt_ids"])
            columns, annotations = annotator.shard(table, questions, meter)
            if not leads:
                continue
            if topk is not None:
                write_topk(topk, index, annotator.form, annotations)
            scores.write_table(index, columns, tokens=int(np.sum(columns["tokens"])))
    if group is not None:
        group.wait()  # nobody leaves before the last shard is written
    if not leads or _missing(scores, topk, shards):
        return  # another worker is still at it
    if topk is not None:
        topk.finish(shards, k=job.settings.k, vocab_size=job.vocabulary, value_bits=job.settings.value_bits)
    scores.finish(shards, role=job.role, model=str(job.model))


def _group(job: AnnotateJob) -> Group | None:
    """The processes that hold the model together; None: this one alone. Starts the engine."""
    if job.settings.tensor_parallel == 1:
        return None
    from npd_ascend.models.group import Group

    return Group(job.device, job.settings.tensor_parallel)


def _missing(scores: Dataset, topk: Dataset | None, shards: int) -> list[int]:
    return sorted({*scores.missing(shards), *(topk.missing(shards) if topk else [])})


class _Annotator:
    """One model with what it needs to annotate shard after shard; the engine starts when first needed."""

    def __init__(self, job: AnnotateJob, header: np.ndarray, load: Callable[..., Scorer] | None, group: Group | None):
        self.job, self.header, self._load = job, header, load
        self._shared: dict[str, Any] = {} if group is None else {"peers": group.model}
        self.spec = ModelSpec.from_folder(job.model).sharing(job.vocabulary, job.model)
        self.k = job.settings.k if job.topk_out else 0
        if self.k > job.vocabulary:
            raise UserError(f"annotate.k is {self.k} but the vocabulary has {job.vocabulary} ids; lower it")
        self.form = TopKFormat(max(self.k, 1), job.vocabulary, job.settings.value_bits)
        self._from_rollout = job.role == "student" and job.settings.student_nll == "rollout"
        self._scorer: Scorer | None = None

    def shard(self, rollouts: pa.Table, prompts: pa.Table, meter: Meter) -> tuple[pa.Table, list[TopK]]:
        """Scores of a shard, and its top-k when it is asked for (else without columns of ids)."""
        responses = _lists(rollouts["response_ids"], np.int32)
        contexts = self._contexts(rollouts, prompts)
        self._check(contexts, responses)
        n = len(responses)
        stored: list = _lists(rollouts["logprobs"], np.float32) if self._from_rollout else [None] * n
        # Rollouts of another model, such as reference answers, come without log-probs.
        prefilled = [i for i in range(n) if stored[i] is None]

        def done(tokens: int) -> None:
            meter.advance(0, tokens)

        conditioned: dict[int, TopK] = {}
        if prefilled:
            annotated = self._scorer_of(meter).score([contexts[i] for i in prefilled],
                                          [responses[i] for i in prefilled], self.k, done)
            conditioned = dict(zip(prefilled, annotated, strict=True))
        nll_uncond = np.full(n, np.nan)
        if self.job.unconditioned:
            alone = self._scorer_of(meter).score([self.header] * n, responses, 0, done)
            nll_uncond = np.array([_mean_nll(a.sampled) for a in alone])
        meter.advance(n)
        columns = pa.table({
            "sample_id": rollouts["sample_id"],
            "tokens": pa.array([len(r) for r in responses], pa.int32()),
            "nll_cond": [_mean_nll(conditioned[i].sampled if i in conditioned else stored[i]) for i in range(n)],
            "nll_uncond": nll_uncond,
            "entropy": [_mean(conditioned[i].entropy) if i in conditioned else np.nan for i in range(n)],
            "topk_mass": [_mean(np.exp(conditioned[i].logprobs).sum(1)) if self.k else np.nan for i in range(n)],
        })
        return columns, list(conditioned.values())

    def _scorer_of(self, meter: Meter) -> Scorer:
        """The loaded model; the meter leaves out what loading and compiling take."""
        if self._scorer is None:
            with meter.paused():
                from npd_ascend.annotate.prefill import Scorer

                started("annotate")
                load = self._load or partial(Scorer, compiling=meter.paused, compiled=self.job.compiled,
                                             bound=self.job.longest)
                self._scorer = load(self.job.model, self.spec, self.job.settings, self.job.device, **self._shared)
        return self._scorer

    def _contexts(self, rollouts: pa.Table, prompts: pa.Table) -> list[np.ndarray]:
        ids = _lists(prompts["prompt_ids"], np.int32)
        place = {p: i for i, p in enumerate(prompts["prompt_index"].to_pylist())}
        try:
            return [ids[place[p]] for p in rollouts["prompt_index"].to_pylist()]
        except KeyError as e:
            raise UserError(f"{self.job.rollouts}: answers prompt {e.args[0]}, which is not in the same shard of "
                            f"{self.job.prompts}; use a new run.dir") from None

    def _check(self, contexts: list[np.ndarray], responses: list[np.ndarray]) -> None:
        vocab = self.job.vocabulary
        for what, lists in (("prompt", contexts), ("response", responses), ("header", [self.header])):
            top = max((int(x.max()) for x in lists if len(x)), default=-1)
            if top >= vocab:
                raise UserError(f"{self.job.rollouts}: a {what} holds token id {top} but the vocabulary has {vocab} "
                                f"ids; teacher and student must share a tokenizer")
        longest = max((len(c) + len(r) for c, r in zip(contexts, responses, strict=True)), default=0)
        longest = max(longest, max(map(len, responses), default=0) + len(self.header))
        if longest > self.job.settings.row_length:
            raise UserError(f"a prompt and response have {longest} tokens but annotate.row_length is "
                            f"{self.job.settings.row_length}: raise it to at least that")


def _lists(column: pa.ChunkedArray, dtype: type) -> list:
    """A list column as numpy arrays without copies; null stays None."""
    out: list[np.ndarray | None] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        offsets = chunk.offsets.to_numpy()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        out += [values[a:b] if ok else None for a, b, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)]
    return out


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")


def _mean_nll(logprobs: np.ndarray) -> float:
    return -_mean(logprobs)
