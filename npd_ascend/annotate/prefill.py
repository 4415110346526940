"""Scores responses after their contexts by packed prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from npd_ascend.annotate.head import ChunkedHead, concatenate
from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.config.schema import AnnotateConfig
from npd_ascend.errors import UserError
from npd_ascend.models.compile_cache import Graphs, network_key
from npd_ascend.models.device_modules import MAX_SEGMENTS
from npd_ascend.models.network import CausalLM, build
from npd_ascend.models.parallel.collectives import ALONE, ProcessGroup
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf
from npd_ascend.rows.prefill import prefill_batches
from npd_ascend.store.topk_codec import TopK


class Scorer:
    """A model ready to score; built once, every forward pass has the same shape.

    Args:
        model: Hugging Face folder.
        spec: its architecture; probabilities are over its ``vocabulary``.
        settings: row length, micro batch, chunk size.
        device: where it runs.
        group: the processes that hold the model together; all must call ``score`` with the same samples.
        compiling: held open while a graph is compiled.
        compiled: folder in which compiled graphs outlive the process; None: they do not.
        bound: tokens that a sample may have; shards whose samples are shorter share its graph where that pays.
        net: the network to take, built as these arguments say; None: one of its own.
    """

    def __init__(
        self,
        model: Path,
        spec: ModelSpec,
        settings: AnnotateConfig,
        device: Device,
        group: ProcessGroup = ALONE,
        compiling: Callable[[], AbstractContextManager[object]] = nullcontext,
        compiled: Path | None = None,
        bound: int | None = None,
        net: CausalLM | None = None,
    ):
        self._model, self._spec, self._settings = model, spec, settings
        self._max_segments = MAX_SEGMENTS if device.target == "ascend" else None
        self._net = net or build(spec, device, settings.row_length, params_dtype=device.dtype, group=group, bound=bound)
        load_hf(self._net, model)
        self._graphs = Graphs("annotate", compiled, network_key(spec, device), compiling)
        positions = settings.row_length * settings.micro_batch
        self._head = ChunkedHead(
            self._net.head_weight,
            min(settings.vocab_chunk_rows, positions),
            on_host=device.target == "cpu",
            group=group,
            vocabulary=spec.vocabulary,
            run=self._graphs,
        )

    def load(self, model: Path) -> None:
        """Takes over the weights of another checkpoint of the same architecture."""
        load_hf(self._net, model)
        self._model = model

    def score(
        self,
        contexts: Sequence[Array],
        responses: Sequence[Array],
        k: int,
        done: Callable[[int, int], None] = lambda samples, tokens: None,
    ) -> list[TopK]:
        """Annotation of every response token given its context and the response before it.

        Rows are packed from these samples alone, so the result is a function of the arguments.

        Args:
            contexts: token ids before each response, at least one each.
            responses: token ids to be predicted; may be empty.
            k: best tokens kept a position; 0: none.
            done: called after each pass with the samples and the tokens that it prefilled, contexts included.

        Returns:
            One annotation a sample.

        Raises:
            UserError: a sample is longer than a row, or the model computes NaN.
        """
        settings = self._settings
        out = [concatenate([], k)] * len(contexts)
        for part in prefill_batches(
            contexts, responses, settings.row_length, settings.micro_batch, self._spec.pad_token_id
        ):
            if self._max_segments and len(part.samples) + settings.micro_batch > self._max_segments:
                raise UserError(
                    f"a batch holds {len(part.samples)} samples, flash attention tells "
                    f"{self._max_segments} apart: lower annotate.row_length or annotate.micro_batch"
                )
            rows = part.rows
            hidden = self._graphs(self._net, *self._net.inputs(rows))
            result = self._head(hidden, part.at, part.targets, k)
            if not np.isfinite(result.logz).all():
                raise UserError(
                    f"{self._model}: the model computes NaN or infinite logits; check the checkpoint, or "
                    f"use device.dtype: float32"
                )
            for i, span in part.spans():
                out[i] = result[span]
            done(len(part.samples), rows.tokens)
        return out
