"""Scores responses after their contexts by packed prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

from npd_ascend.annotate.head import ChunkedHead, concatenate
from npd_ascend.config.jobs import Device
from npd_ascend.config.schema import AnnotateConfig
from npd_ascend.errors import UserError
from npd_ascend.models.leaves import MAX_SEGMENTS
from npd_ascend.models.network import build
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.rows.collate import collate, response_positions
from npd_ascend.store.topk_codec import TopK


class Scorer:
    """A model ready to score; built once, every forward pass has the same shape.

    Args:
        model: Hugging Face folder.
        spec: its architecture.
        settings: row length, micro batch, chunk size.
        device: where it runs.
    """

    def __init__(self, model: Path, spec: ModelSpec, settings: AnnotateConfig, device: Device):
        self._model, self._spec, self._settings = model, spec, settings
        self._max_segments = MAX_SEGMENTS if device.target == "ascend" else None
        self._net = build(spec, device, settings.row_length, params_dtype=device.dtype)
        load_hf(self._net, model)
        positions = settings.row_length * settings.micro_batch
        self._head = ChunkedHead(self._net.head_weight, min(settings.vocab_chunk_rows, positions),
                                 on_host=device.target == "cpu")

    def score(self, contexts: Sequence[np.ndarray], responses: Sequence[np.ndarray], k: int,
              done: Callable[[int], None] = lambda tokens: None) -> list[TopK]:
        """Annotation of every response token given its context and the response before it.

        Rows are packed from these samples alone, so the result is a function of the arguments.

        Args:
            contexts: token ids before each response, at least one each.
            responses: token ids to be predicted; may be empty.
            k: best tokens kept a position; 0: none.
            done: told after each pass how many tokens it has prefilled, contexts included.

        Returns:
            One annotation a sample.

        Raises:
            UserError: a sample is longer than a row, or the model computes NaN.
        """
        row_length, batch = self._settings.row_length, self._settings.micro_batch
        head = np.fromiter(map(len, contexts), np.int64, len(contexts))
        body = np.fromiter(map(len, responses), np.int64, len(responses))
        out = [concatenate([], k)] * len(head)
        scored = np.flatnonzero(body)
        # The last token predicts nothing that is asked for, so it takes no place in a row.
        bins = best_fit_decreasing(head[scored] + body[scored] - 1, row_length)
        for first in range(0, len(bins), batch):
            rows = [scored[bins[b]] for b in range(first, min(first + batch, len(bins)))]
            samples = np.concatenate(rows)
            if self._max_segments and len(samples) + batch > self._max_segments:
                raise UserError(f"a batch holds {len(samples)} samples, flash attention tells {self._max_segments} "
                                f"apart: lower annotate.row_length or annotate.micro_batch")
            packed = collate([[np.concatenate([contexts[i], responses[i][:-1]]) for i in row] for row in rows],
                             row_length, self._spec.pad_token_id, batch)
            hidden = self._net(ms.Tensor(packed.input_ids), ms.Tensor(packed.position_ids),
                               ms.Tensor(packed.segment_ids))
            at = response_positions(packed.starts, head[samples], body[samples])
            result = self._head(hidden, at, np.concatenate([responses[i] for i in samples]), k)
            if not np.isfinite(result.logz).all():
                raise UserError(f"{self._model}: the model computes NaN or infinite logits; check the checkpoint, or "
                                f"use device.dtype: float32")
            ends = np.cumsum(body[samples])
            for i, start, stop in zip(samples, ends - body[samples], ends, strict=True):
                out[i] = result[int(start):int(stop)]
            done(packed.tokens)
        return out
