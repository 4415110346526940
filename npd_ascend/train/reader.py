"""Micro-batches of fixed shape, made in numpy ahead of the step that needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import TrainConfig
from npd_ascend.errors import UserError
from npd_ascend.objectives.inputs import LossInputs
from npd_ascend.objectives.registry import Tokens, find_token_weight, input_names, parameters, summands
from npd_ascend.rows.collate import RowBatch, collate_flat, response_positions
from npd_ascend.rows.slices import Slice
from npd_ascend.store.ragged import concat_ranges
from npd_ascend.store.topk_codec import TopK
from npd_ascend.store.topk_shard import TopKReader
from npd_ascend.train.corpus import Corpus, EpochPlan

_ALIGN = 8
_BLOCK = 256
"""Samples whose annotation is decoded at once for the statistics of a generation."""
_WHOLE = Slice()
_ALL = slice(None)
_NONE = np.empty(0, np.float32)
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass reads.

    Attributes:
        rows: inputs [B, S], whole rows.
        positions: [N] int32, flat positions whose hidden states predict response tokens; 0 beyond ``tokens``. Under
            context parallelism these and what follows are of this rank's ``Slice``.
        inputs: of the loss, N rows; zeros beyond ``tokens``.
        tokens: response tokens in it that are trained on.
        samples: ordinals, of the whole rows.
    """

    rows: RowBatch
    positions: Array
    inputs: LossInputs
    tokens: int
    samples: Array


class Reader:
    """Global batches of one generation, cut for one of ``world`` data-parallel ranks.

    Global batch i of an epoch is rows [i·G, (i+1)·G) of its plan, the last one filled up with empty rows; rank r
    takes the r-th of ``world`` equal consecutive parts and works through it in micro-batches.

    Args:
        corpus: samples.
        plans: one a local epoch.
        topk: teacher annotation; read only if loss or token weight look at it.
        settings: batch sizes, loss.
        row_length, pad_token_id: of the rows.
        vocabulary: ids must lie below.
        rank, world: data-parallel place.
        align: ``head_rows`` is a multiple of this, or all positions of a micro-batch where these are fewer.
        max_segments: samples and padding tails that attention tells apart in one micro-batch; None: any number.
        part: positions of the rows whose losses this process computes.

    Attributes:
        head_rows: loss rows of every micro-batch.
        chunk: rows of a loss chunk, an equal part of them.

    Raises:
        UserError: the annotation is missing or of other samples, or a micro-batch holds too many.
    """

    def __init__(
        self,
        corpus: Corpus,
        plans: Sequence[EpochPlan],
        topk: TopKReader | None,
        settings: TrainConfig,
        row_length: int,
        pad_token_id: int,
        vocabulary: int,
        rank: int = 0,
        world: int = 1,
        align: int = _ALIGN,
        max_segments: int | None = None,
        part: Slice = _WHOLE,
    ):
        self.corpus, self.plans, self.topk, self.settings = corpus, plans, topk, settings
        self.row_length, self.pad, self.vocab = row_length, pad_token_id, vocabulary
        self.rank, self.world = rank, world
        self.part, self._positions = part, settings.micro_batch * row_length // part.size
        self.align = min(align, self._positions)
        self.max_segments = max_segments
        self._factors_of: dict[int, tuple[EpochPlan, Array]] = {}
        self.longest = max(int((p.prompt_tokens.astype(np.int64) + p.response_tokens).max(initial=1)) for p in plans)
        for plan in plans:
            self.check_segments(plan)
        self.terms, self._token_weight = summands(settings.loss), find_token_weight(settings.loss)
        self.names = input_names(self.terms)
        self._extras = "teacher_labels" in self.names or "topk" in self._token_weight.needs
        if not ("teacher_ids" in self.names or self._extras):
            self.topk = None
        elif topk is None:
            raise UserError(
                "the loss (train.loss) looks at the teacher, but there is no teacher annotation; run annotate first"
            )
        self.k = topk.k if topk is not None and "teacher_ids" in self.names else 0
        most = max(_group_maximum(p, settings.micro_batch, settings.global_batch) for p in plans)
        self.head_rows, self.chunk = loss_shape(most, self._positions, settings.vocab_chunk_rows, self.align)
        if self.topk is not None and len(self.topk) != len(corpus):
            raise UserError(
                f"{self.topk.dataset.folder}: annotates {len(self.topk)} samples, the rollouts have "
                f"{len(corpus)}; run annotate again"
            )
        stats = self._token_weight.stats
        self._stats = stats(self._generation()) if stats else None

    @property
    def steps(self) -> list[int]:
        """Global batches of each local epoch."""
        return [-(-len(p) // self.settings.global_batch) for p in self.plans]

    def tokens(self, epoch: int, batch: int) -> int:
        """Response tokens of a whole global batch that are trained on, over all ranks: what its loss is divided by."""
        part = self._samples(epoch, batch)
        return max(1, self.trained(self.plans[epoch], part))

    def trained(self, plan: EpochPlan, part: slice = _ALL) -> int:
        """Response tokens that are trained on, of some samples of a plan."""
        return int(self.corpus.written(plan.samples[part], plan.response_tokens[part]).sum())

    def row_tokens(self, epoch: int, batch: int) -> int:
        """Tokens of a whole global batch, prompts included: the work that is done."""
        plan, part = self.plans[epoch], self._samples(epoch, batch)
        return int(plan.prompt_tokens[part].sum() + plan.response_tokens[part].sum())

    def samples(self, epoch: int, batch: int) -> Array:
        """Ordinals of all samples of a global batch."""
        return self.plans[epoch].samples[self._samples(epoch, batch)]

    def _samples(self, epoch: int, batch: int) -> slice:
        """Places of a global batch's samples in their plan."""
        plan, g = self.plans[epoch], self.settings.global_batch
        return slice(int(plan.first[batch * g]), int(plan.first[min((batch + 1) * g, len(plan))]))

    def check_segments(self, plan: EpochPlan) -> None:
        """Refuses a plan whose fullest micro-batch attention could not keep apart.

        Raises:
            UserError: see there.
        """
        micro = self.settings.micro_batch
        ends = np.minimum(np.arange(0, len(plan) + micro, micro), len(plan))
        most = int(np.diff(plan.first[ends]).max(initial=0))
        if self.max_segments is not None and most + micro > self.max_segments:
            raise UserError(
                f"a micro-batch holds {most} samples in {micro} rows, flash attention tells "
                f"{self.max_segments} apart, padding of each row included: lower pack.row_length or "
                f"train.micro_batch"
            )

    def micro_batches(self, epoch: int, batch: int) -> Iterator[MicroBatch]:
        """This rank's part of a global batch, in order."""
        plan, s = self.plans[epoch], self.settings
        part = s.global_batch // self.world
        start = batch * s.global_batch + self.rank * part
        for at in range(start, start + part, s.micro_batch):
            yield self.make(plan, min(at, len(plan)), min(at + s.micro_batch, len(plan)))

    def make(self, plan: EpochPlan, begin: int, end: int) -> MicroBatch:
        """Rows [begin, end) of a plan as one micro-batch.

        Raises:
            UserError: ids lie beyond the vocabulary, or the annotation is of other samples.
            CorruptShard: the annotation's checksum differs.
        """
        lo, hi = int(plan.first[begin]), int(plan.first[end])
        samples, response_n = plan.samples[lo:hi], plan.response_tokens[lo:hi]
        rows, mine, where = self.inputs(plan, begin, end)
        positions = _rows_of(where, self.head_rows)
        scale = self.corpus.weights[samples] * self._factors(plan)[lo:hi]
        return MicroBatch(rows, positions, self._loss_inputs(samples, response_n, mine, scale), len(where), samples)

    def _factors(self, plan: EpochPlan) -> Array:
        """[samples of the plan] float64 that make of a mean over the tokens of a global batch the configured mean.

        With T tokens and N samples in a batch, n tokens of a sample: T / (N n) over sequences, T / (N L) over a
        constant length L.
        """
        loss, key = self.settings.loss, id(plan)
        if key not in self._factors_of:
            factors = np.ones(len(plan.samples))
            if loss.mean != "token" and len(plan.samples):
                tokens = self.corpus.written_tokens(plan.samples, plan.response_tokens)
                rows = np.repeat(np.arange(len(plan)), np.diff(plan.first))
                batch = rows // self.settings.global_batch
                total, number = np.bincount(batch, tokens), np.bincount(batch, tokens > 0)
                of = np.maximum(tokens, 1) if loss.mean == "sequence" else float(loss.mean_length or 1)
                factors = (total / np.maximum(number, 1))[batch] / of
            self._factors_of[key] = (plan, factors)  # which keeps the plan, and so its id
        return self._factors_of[key][1]

    def _loss_inputs(self, samples: Array, response_n: Array, mine: Array, scale: Array) -> LossInputs:
        """What the loss reads of the first ``response_n`` tokens of each sample.

        Args:
            samples: ordinals.
            response_n: tokens of each.
            mine: which of all of their tokens.
            scale: weight of each sample.
        """
        c, n, names, m = self.corpus, self.head_rows, self.names, len(self.terms)
        notes = self._annotations(samples, response_n) if self.topk is not None and len(samples) else None
        weights = np.repeat(scale, response_n).astype(np.float32)
        if not self._token_weight.uniform and len(samples):
            weights[c.written(samples, response_n)] *= np.concatenate(
                [_NONE, *(self._token_weight.weight(t, self._stats) for t in self._tokens(samples, response_n, notes))]
            )
        found: dict[str, Array] = {
            "labels": _rows_of(c.targets(samples, response_n)[mine], n),
            "weights": np.repeat(_rows_of(weights[mine], n)[:, None], m, 1),
        }
        if self.k:
            ids, logprobs = np.zeros((n, self.k), np.int32), np.zeros((n, self.k), np.float32)
            if notes is not None:
                ids[: len(mine)], logprobs[: len(mine)] = notes.ids[mine], notes.logprobs[mine]
            found |= {"teacher_ids": ids, "teacher_logprobs": logprobs}
        if "teacher_labels" in names:
            own = np.zeros(0, np.float32) if notes is None else notes.sampled[mine]
            found["teacher_labels"] = _rows_of(own, n)
        if "rollout_logprobs" in names:
            found["rollout_logprobs"] = _rows_of(self._rollout_logprobs(samples, response_n)[mine], n)
        if "advantages" in names:
            assert c.advantages is not None
            found["advantages"] = _rows_of(np.repeat(c.advantages[samples], response_n)[mine], n)
        if "parameters" in names:
            found["parameters"] = np.tile(parameters(self.terms), (n, 1))
        self._check_ids(found)
        return LossInputs(**found)

    def _check_ids(self, found: dict[str, Array]) -> None:
        for ids in (found["labels"], found.get("teacher_ids", found["labels"])):
            if ids.min() < 0 or ids.max() >= self.vocab:
                raise UserError(
                    f"token id {int(ids.max())} lies beyond the vocabulary of {self.vocab}; teacher and "
                    f"student must share one tokenizer"
                )

    def _rollout_logprobs(self, samples: Array, response_n: Array) -> Array:
        found = self.corpus.rollout_logprobs
        assert found is not None
        if (found.lengths_of(samples) < response_n).any():
            raise UserError(
                "a term of train.loss needs rollout log-probs, which reference answers lack; see rollout.source"
            )
        return found.take(samples, response_n)

    def _tokens(self, samples: Array, response_n: Array, notes: TopK | None) -> Iterator[Tokens]:
        """What a token weight looks at, sample by sample: the tokens that are trained on, of samples that have some;
        ``notes`` of all tokens, one behind the other."""
        end, written = 0, self.corpus.written(samples, response_n)
        for ordinal, n in zip(samples.tolist(), response_n.tolist(), strict=True):
            end += n
            at = np.flatnonzero(written[end - n : end])
            if not len(at):
                continue
            own = self.corpus.rollout_logprobs
            logprobs = own[ordinal][:n] if own is not None else None
            yield Tokens(
                len(at),
                None if notes is None else notes[end - n + at],
                logprobs[at] if logprobs is not None and len(logprobs) == n else None,
            )

    def _generation(self) -> Iterator[Tokens]:
        """All samples that are trained on, in the order of the store: the first phase of a token weight."""
        plan = self.plans[0]
        order = np.argsort(plan.samples, kind="stable")
        for at in range(0, len(order), _BLOCK):
            part = order[at : at + _BLOCK]
            samples, response_n = plan.samples[part], plan.response_tokens[part]
            notes = self._annotations(samples, response_n) if "topk" in self._token_weight.needs else None
            yield from self._tokens(samples, response_n, notes)

    def inputs(self, plan: EpochPlan, begin: int, end: int) -> tuple[RowBatch, Array, Array]:
        """Rows [begin, end) of a plan, filled up to a micro-batch with empty ones.

        Returns:
            The arrays that the network reads; which of their response tokens are trained on and predicted in this
            process's part of the rows; and the flat positions in it that predict them: [tokens] int64 both.
        """
        lo, hi = int(plan.first[begin]), int(plan.first[end])
        samples, prompt_n, response_n = (a[lo:hi] for a in (plan.samples, plan.prompt_tokens, plan.response_tokens))
        rows = collate_flat(
            self.corpus.texts(samples, prompt_n, response_n),
            prompt_n.astype(np.int64) + response_n,
            np.diff(plan.first[begin : end + 1]),
            self.row_length,
            self.pad,
            self.settings.micro_batch,
            self.longest,
        )
        mine, where = self.part.find(response_positions(rows.starts, prompt_n, response_n), self.row_length)
        written = self.corpus.written(samples, response_n)[mine]
        return rows, mine[written], where[written]

    def _annotations(self, samples: Array, tokens: Array) -> TopK:
        """Annotation of the first ``tokens`` of each sample, one behind the other."""
        assert self.topk is not None
        notes, found = self.topk.read_many(samples, extras=self._extras)
        if (found < tokens).any():
            i = int((found < tokens).argmax())
            raise UserError(
                f"{self.topk.dataset.folder}: sample {samples[i]} has {found[i]} annotated tokens, its "
                f"response {tokens[i]}; run annotate again"
            )
        return notes if (found == tokens).all() else notes[concat_ranges(np.cumsum(found) - found, tokens)]


def _rows_of(values: Array, n: int) -> Array:
    """[n] of values [t], zeros behind them; 64 bits become 32."""
    out = np.zeros(n, np.float32 if values.dtype.kind == "f" else np.int32)
    out[: len(values)] = values
    return out


def head_rows(counts: Sequence[int], chunk: int, align: int = _ALIGN) -> int:
    """Static number of head rows: the largest count as a multiple of ``align``, rounded up to equal aligned chunks."""
    most = -(-max(max(counts, default=1), 1) // align) * align
    parts = -(-most // max(_ALIGN, chunk))
    return parts * (-(-most // (parts * _ALIGN)) * _ALIGN)


def loss_shape(most: int, positions: int, chunk_rows: int, align: int = sys.maxsize) -> tuple[int, int]:
    """Head rows of a micro-batch, and the rows of a loss chunk, an equal part of them.

    Args:
        most: response tokens that a micro-batch may hold.
        positions: of a micro-batch.
        chunk_rows: ``vocab_chunk_rows``. A chunk has at most that many rows, or a quarter of the positions.
        align: head rows are a multiple of this, or all positions where these are fewer.
    """
    # The loss leaves out chunks that a batch does not fill: a few of them, so that little is computed in vain.
    limit = min(chunk_rows, max(_ALIGN, positions // 4))
    rows = head_rows([min(most, positions)], limit, min(align, positions))
    parts = -(-rows // max(_ALIGN, limit))
    return rows, -(-rows // parts)


def ahead(items: Iterator[_T], prepare: Callable[[_T], _R], depth: int = 2) -> Iterator[_R]:
    """``map(prepare, items)`` with ``depth`` results made in a thread while the caller works."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        waiting = []
        try:
            for item in items:
                waiting.append(pool.submit(prepare, item))
                if len(waiting) > depth:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _group_maximum(plan: EpochPlan, micro: int, group: int) -> int:
    rows = plan.response_tokens_by_row()
    rows = np.concatenate([rows, np.zeros(-len(rows) % group, np.int64)])
    return int(rows.reshape(-1, micro).sum(1).max(initial=0))
