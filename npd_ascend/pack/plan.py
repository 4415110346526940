"""One epoch's plan: which samples stand in which row, and in which order the rows are trained on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from npd_ascend.arrays import Array
from npd_ascend.pack.lengths import Samples
from npd_ascend.rows.balance import balanced_order
from npd_ascend.rows.bfd import Bins


def epoch_plan(bins: Bins, lengths: Array, group: int, seed: int, epoch: int) -> Bins:
    """Another mixture of the same packing for every epoch.

    Samples of equal length change places, so that a sample has other neighbours in its global batch, and rows are
    shuffled with balanced attention cost. Number of rows, density and row costs are those of ``bins``.

    Args:
        bins: the packing of [N] samples.
        lengths: [N] tokens of each sample.
        group: rows of a global batch.
        seed: of the generation's first epoch.
        epoch: local epoch.

    Returns:
        Rows in training order.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = balanced_order(bins.sums(lengths**2), group, [seed, epoch, 1])
    exchanged = _exchange_equal(bins.order, lengths, rng)
    size = np.diff(bins.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    source = np.repeat(bins.offsets[rows] - offsets[:-1], size) + np.arange(len(exchanged))
    return Bins(exchanged[source], offsets)


def as_table(plan: Bins, samples: Samples) -> pa.Table:
    """The plan as a ``packs`` table: per row the ordinals of its samples and their prompt and response tokens."""

    def lists(values: Array, dtype: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(plan.offsets, pa.int32()), pa.array(values[plan.order], dtype))

    return pa.table(
        {
            "samples": lists(samples.ordinals, pa.int64()),
            "prompt_tokens": lists(samples.prompt, pa.int32()),
            "response_tokens": lists(samples.response, pa.int32()),
        }
    )


def _exchange_equal(order: Array, lengths: Array, rng: np.random.Generator) -> Array:
    """``order`` with samples of equal length in random places among themselves."""
    places = np.argsort(lengths[order], kind="stable")
    shuffled = rng.permutation(len(lengths))
    out = np.empty_like(order)
    out[places] = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    return out
