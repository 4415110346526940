"""How much each layer of a checkpoint changes the hidden states, with one layer in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.models.network import CausalLM, build
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import Entry
from npd_ascend.models.weights import checked, finite
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.rows.collate import RowBatch, collate
from npd_ascend.store.identity import check_seals

_FIRST = re.compile(r"^model\.layers\.0\.")
_IN_LAYER = "model.decoder.layers.0."
_SMALL_VOCABULARY = 16


def block_influence(
    folder: Path,
    texts: Sequence[Array],
    device: Device,
    row_length: int,
    done: Callable[[int], None] = lambda layer: None,
) -> Array:
    """Block influence of every layer: 1 - E[cos(input, output)] over tokens (ShortGPT, arXiv:2403.03853, eq. 1).

    A network of a single layer takes the weights of one layer after the other, so a model of any depth needs the
    memory of one layer and of the hidden states.

    Args:
        folder: checkpoint of a supported family.
        texts: token ids of each text, at least one token and at most ``row_length``.
        device: where the layers run.
        row_length: positions a packed row.
        done: is given the number of each finished layer.

    Returns:
        [layers] float64, from 0 (a layer that changes nothing but lengths) to 2.

    Raises:
        UserError: the checkpoint is damaged or not supported.
    """
    check_seals(folder)
    spec = ModelSpec.from_folder(folder)
    found = checked(spec, folder)
    layer = _Layer(spec, device, row_length)
    rows = _rows(texts, row_length, spec.pad_token_id)
    states = [_embedded(found["model.embed_tokens.weight"], batch) for batch in rows]
    influence = np.zeros(spec.num_layers)
    for number in range(spec.num_layers):
        layer.load(found, number)
        similarity = []
        for i, batch in enumerate(rows):
            after = layer.run(states[i], batch)
            similarity.append(_cosine(states[i], after)[_real(batch)])
            states[i] = after
        influence[number] = 1 - np.concatenate(similarity).mean()
        done(number)
    return influence


class _Layer:
    """One layer of an architecture, to be filled with the weights of any of them."""

    def __init__(self, spec: ModelSpec, device: Device, row_length: int):
        # Embedding and head are never used, so a small vocabulary saves their memory.
        one = replace(
            spec, num_layers=1, vocab_size=_SMALL_VOCABULARY, vocabulary=_SMALL_VOCABULARY, tie_embeddings=True
        )
        self._net = build(one, device, row_length, params_dtype=device.dtype)
        self._forward = _Forward(self._net)
        self._parameters = {p.name: p for p in self._net.get_parameters()}

    def load(self, found: dict[str, Entry], number: int) -> None:
        """Takes the weights of layer ``number``."""
        tp_shards = self._net.tp_shards()
        for param, rule in tp_shards.rules.items():
            if not param.startswith(_IN_LAYER):
                continue
            tensors = [finite(found[_FIRST.sub(f"model.layers.{number}.", name)]) for name in rule.hf]
            parameter = self._parameters[param]
            merged = np.ascontiguousarray(tp_shards.merge(param, tensors))
            parameter.set_data(ms.Tensor(merged, dtype=parameter.dtype))

    def run(self, hidden: Array, rows: RowBatch) -> Array:
        """Hidden states [S, B, H] before the layer -> after it, float32."""
        state = ms.Tensor(hidden, dtype=self._net.compute_dtype)
        return self._forward(state, *self._net.inputs(rows)).astype(ms.float32).asnumpy()


class _Forward(nn.Cell):
    """The layers of a network without embedding and final norm."""

    def __init__(self, net: CausalLM):
        super().__init__(auto_prefix=False)  # parameters keep their names
        net.model.decoder.post_layer_norm = False
        self.net = net

    def construct(
        self,
        hidden: ms.Tensor,
        input_ids: ms.Tensor,
        position_ids: ms.Tensor,
        segment_ids: ms.Tensor,
        window: ms.Tensor | None = None,
    ) -> ms.Tensor:
        """hidden [S, B, H] -> the same shape; the other arguments as of ``CausalLM``."""
        mask, ends = self.net.mask(segment_ids, window)
        states = hidden if self.net.flash else hidden.reshape(-1, hidden.shape[2])  # as the layers pass them on
        out = self.net.model(input_ids, position_ids, mask, decoder_input=states, actual_seq_len=ends)
        return out.reshape(hidden.shape)


def _rows(texts: Sequence[Array], row_length: int, pad_id: int) -> list[RowBatch]:
    """Packed rows, one a batch; all share a bound and so a compiled graph."""
    lengths = np.array([len(t) for t in texts], np.int64)
    longest = int(lengths.max())
    bins = best_fit_decreasing(lengths, row_length)
    return [collate([[texts[i] for i in bins[b]]], row_length, pad_id, 1, longest) for b in range(len(bins))]


def _embedded(table: Entry, rows: RowBatch) -> Array:
    """[S, B, H] float32."""
    ids, place = np.unique(rows.input_ids, return_inverse=True)
    return table.rows(ids)[place.reshape(rows.input_ids.shape)].transpose(1, 0, 2)


def _real(rows: RowBatch) -> Array:
    """[S, B] bool: no padding."""
    return (rows.segment_ids >= 0).T


def _cosine(a: Array, b: Array) -> Array:
    """[S, B, H], [S, B, H] -> [S, B] float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)
