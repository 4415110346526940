"""Micro-batches of fixed shape, made in numpy ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from npd_ascend.config.schema import LossConfig, TrainConfig
from npd_ascend.errors import UserError
from npd_ascend.objectives.registry import Tokens, find_divergences, find_token_weight
from npd_ascend.rows.collate import RowBatch, collate_flat, response_positions
from npd_ascend.rows.slices import Slice
from npd_ascend.store.ragged import ramps
from npd_ascend.store.topk_codec import TopK
from npd_ascend.store.topk_shard import TopKReader
from npd_ascend.train.corpus import Corpus, EpochPlan

_ALIGN = 8
_WHOLE = Slice()


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass reads.

    Attributes:
        rows: inputs [B, S], whole rows.
        positions: [N] int32, flat positions whose hidden states predict response tokens; 0 beyond ``tokens``. Under
            context parallelism these and what follows are of this rank's ``Slice``.
        targets: [N, 1 + k] int32, CE label, then the teacher's ids; [N, 1] without a teacher.
        teacher: [N, k] float32, the teacher's log-probs; [N, 1] of zeros without one.
        weights: [N, 1 + M] float32 of CE and M divergences (``ChunkedLoss``): sample weight times token weight, equal
            columns; 0 beyond ``tokens``. M = 0 without a teacher.
        parameters: [N, M] float32 of the divergences; [N, 1] of zeros without any.
        tokens: response tokens in it.
        samples: ordinals, of the whole rows.
    """

    rows: RowBatch
    positions: np.ndarray
    targets: np.ndarray
    teacher: np.ndarray
    weights: np.ndarray
    parameters: np.ndarray
    tokens: int
    samples: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the loss takes, in its order."""
        return self.positions, self.targets, self.teacher, self.weights, self.parameters


class Reader:
    """Global batches of one generation, cut for one of ``world`` data-parallel ranks.

    Global batch i of an epoch is rows [i·G, (i+1)·G) of its plan, the last one filled up with empty rows; rank r
    takes the r-th of ``world`` equal consecutive parts and works through it in micro-batches.

    Args:
        corpus: samples.
        plans: one a local epoch.
        topk: teacher annotation; None where neither loss nor token weight looks at it.
        settings: batch sizes, token weight.
        row_length, pad_token_id: of the rows.
        vocabulary: ids must lie below.
        rank, world: data-parallel place.
        align: ``head_rows`` is a multiple of this, or all positions of a micro-batch where these are fewer.
        max_segments: samples and padding tails that attention tells apart in one micro-batch; None: any number.
        part: positions of the rows whose losses this process computes.

    Raises:
        UserError: the annotation is of other samples, or a micro-batch holds too many.
    """

    def __init__(self, corpus: Corpus, plans: Sequence[EpochPlan], topk: TopKReader | None, settings: TrainConfig,
                 row_length: int, pad_token_id: int, vocabulary: int, rank: int = 0, world: int = 1,
                 align: int = _ALIGN, max_segments: int | None = None, part: Slice = _WHOLE):
        self.corpus, self.plans, self.topk, self.settings = corpus, plans, topk, settings
        self.row_length, self.pad, self.vocab = row_length, pad_token_id, vocabulary
        self.rank, self.world = rank, world
        self.part, self._positions = part, settings.micro_batch * row_length // part.size
        self.align = min(align, self._positions)
        self.max_segments = max_segments
        self.longest = max(int((p.prompt_tokens.astype(np.int64) + p.response_tokens).max(initial=1)) for p in plans)
        for plan in plans:
            self.check_segments(plan)
        self.weight = find_token_weight(settings.loss).function
        self.k = topk.k if topk is not None and settings.loss.kd_weight > 0 else 0
        self.parameters = divergence_parameters(settings.loss if self.k else None)
        self._plain_weight = settings.loss.token_weight == "none"
        most = max(_group_maximum(p, settings.micro_batch, settings.global_batch) for p in plans)
        self.head_rows = head_rows([min(most, self._positions)], self._chunk_limit, self.align)
        if topk is not None and len(topk) != len(corpus):
            raise UserError(f"{topk.dataset.folder}: annotates {len(topk)} samples, the rollouts have {len(corpus)}; "
                            f"run annotate again")

    @property
    def _chunk_limit(self) -> int:
        # The loss leaves out chunks that a batch does not fill: a few of them, so that little is computed in vain.
        return min(self.settings.vocab_chunk_rows, max(_ALIGN, self._positions // 4))

    @property
    def chunk(self) -> int:
        """Rows of a loss chunk, an equal part of ``head_rows``; at most ``vocab_chunk_rows`` or a quarter batch."""
        parts = -(-self.head_rows // max(_ALIGN, self._chunk_limit))
        return -(-self.head_rows // parts)

    @property
    def steps(self) -> list[int]:
        """Global batches of each local epoch."""
        return [-(-len(p) // self.settings.global_batch) for p in self.plans]

    def tokens(self, epoch: int, batch: int) -> int:
        """Response tokens of a whole global batch, over all ranks: what its loss is divided by."""
        plan, g = self.plans[epoch], self.settings.global_batch
        first = plan.first[batch * g], plan.first[min((batch + 1) * g, len(plan))]
        return int(plan.response_tokens[first[0] : first[1]].sum())

    def row_tokens(self, epoch: int, batch: int) -> int:
        """Tokens of a whole global batch, prompts included: the work that is done."""
        plan, g = self.plans[epoch], self.settings.global_batch
        first = plan.first[batch * g], plan.first[min((batch + 1) * g, len(plan))]
        return int(plan.prompt_tokens[first[0] : first[1]].sum()) + self.tokens(epoch, batch)

    def samples(self, epoch: int, batch: int) -> np.ndarray:
        """Ordinals of all samples of a global batch."""
        plan, g = self.plans[epoch], self.settings.global_batch
        return plan.samples[plan.first[batch * g] : plan.first[min((batch + 1) * g, len(plan))]]

    def check_segments(self, plan: EpochPlan) -> None:
        """Refuses a plan whose fullest micro-batch attention could not keep apart.

        Raises:
            UserError: see there.
        """
        micro = self.settings.micro_batch
        ends = np.minimum(np.arange(0, len(plan) + micro, micro), len(plan))
        most = int(np.diff(plan.first[ends]).max(initial=0))
        if self.max_segments is not None and most + micro > self.max_segments:
            raise UserError(f"a micro-batch holds {most} samples in {micro} rows, flash attention tells "
                            f"{self.max_segments} apart, padding of each row included: lower pack.row_length or "
                            f"train.micro_batch")

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
        c = self.corpus
        lo, hi = int(plan.first[begin]), int(plan.first[end])
        samples, response_n = plan.samples[lo:hi], plan.response_tokens[lo:hi]
        rows, mine, where = self.inputs(plan, begin, end)
        n, count = self.head_rows, len(where)
        k = self.k
        positions, weights = np.zeros(n, np.int32), np.zeros(n, np.float32)
        targets, teacher = np.zeros((n, 1 + k), np.int32), np.zeros((n, max(1, k)), np.float32)
        positions[:count] = where
        if count:
            targets[:count, 0] = c.targets(samples, response_n)[mine]
            weights[:count] = np.repeat(c.weights[samples], response_n)[mine]
        notes = self._annotations(samples, response_n) if self.topk is not None and count else None
        if notes is not None and k:
            targets[:count, 1:], teacher[:count] = notes.ids[mine], notes.logprobs[mine]
        if targets.min() < 0 or targets.max() >= self.vocab:
            raise UserError(f"token id {int(targets.max())} lies beyond the vocabulary of {self.vocab}; "
                            f"teacher and student must share one tokenizer")
        if not self._plain_weight and count:
            ends = np.cumsum(response_n)
            weights[:count] *= np.concatenate([
                self.weight(Tokens(r, None if notes is None else notes[end - r : end], self._logprobs(o, r)))
                for o, r, end in zip(samples.tolist(), response_n.tolist(), ends.tolist(), strict=True)])[mine]
        columns = np.repeat(weights[:, None], 1 + (len(self.parameters) if k else 0), 1)
        return MicroBatch(rows, positions, targets, teacher, columns, np.tile(self.parameters, (n, 1)), count, samples)

    def inputs(self, plan: EpochPlan, begin: int, end: int) -> tuple[RowBatch, np.ndarray, np.ndarray]:
        """Rows [begin, end) of a plan, filled up to a micro-batch with empty ones.

        Returns:
            The arrays that the network reads; which of their response tokens are predicted in this process's part of
            the rows; and the flat positions in it that predict them: [tokens] int64 both.
        """
        lo, hi = int(plan.first[begin]), int(plan.first[end])
        samples, prompt_n, response_n = (a[lo:hi] for a in (plan.samples, plan.prompt_tokens, plan.response_tokens))
        rows = collate_flat(self.corpus.texts(samples, prompt_n, response_n), prompt_n.astype(np.int64) + response_n,
                            np.diff(plan.first[begin : end + 1]), self.row_length, self.pad, self.settings.micro_batch,
                            self.longest)
        return rows, *self.part.find(response_positions(rows.starts, prompt_n, response_n), self.row_length)

    def _annotations(self, samples: np.ndarray, tokens: np.ndarray) -> TopK:
        """Annotation of the first ``tokens`` of each sample, one behind the other."""
        assert self.topk is not None
        notes, found = self.topk.read_many(samples, extras=not self._plain_weight)
        if (found < tokens).any():
            i = int((found < tokens).argmax())
            raise UserError(f"{self.topk.dataset.folder}: sample {samples[i]} has {found[i]} annotated tokens, its "
                            f"response {tokens[i]}; run annotate again")
        return notes if (found == tokens).all() else notes[ramps(np.cumsum(found) - found, tokens)]

    def _logprobs(self, ordinal: int, tokens: int) -> np.ndarray | None:
        found = self.corpus.logprobs[ordinal][:tokens] if self.corpus.logprobs is not None else None
        return found if found is not None and len(found) == tokens else None


def divergence_parameters(loss: LossConfig | None) -> np.ndarray:
    """[M] float32, the configured parameters of the M divergences; [1] zero for plain CE (None)."""
    return np.array([p for _, p in find_divergences(loss)] if loss else [0.0], np.float32)


def head_rows(counts: Sequence[int], chunk: int, align: int = _ALIGN) -> int:
    """Static number of head rows: the largest count as a multiple of ``align``, rounded up to equal aligned chunks."""
    most = -(-max(max(counts, default=1), 1) // align) * align
    parts = -(-most // max(_ALIGN, chunk))
    return parts * (-(-most // (parts * _ALIGN)) * _ALIGN)


def ahead(items: Iterator, prepare: Callable, depth: int = 2) -> Iterator:
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
