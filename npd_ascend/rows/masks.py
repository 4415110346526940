"""Which tokens of an answer its model has written: the others (turns of tools and users in an agent's trajectory) are
read by the network and count in no loss, score or lag."""

from __future__ import annotations

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.store.ragged import Ragged


def written(masked: Ragged, rows: Array, counts: Array) -> Array:
    """Marks what is trained on.

    Args:
        masked: for each sample begin and end of its masked spans, one pair behind the other (``store.schemas``).
        rows: [n] samples.
        counts: [n] tokens of each, fewer than all where the end was cut.

    Returns:
        [sum of counts] bool, sample by sample: False within a masked span.
    """
    counts = np.asarray(counts, np.int64)
    sizes = masked.lengths_of(rows)
    if not sizes.any():
        return np.ones(int(counts.sum()), bool)
    spans = masked.take(rows, sizes).reshape(-1, 2)
    owner = np.repeat(np.arange(len(counts)), sizes // 2)
    first = (np.cumsum(counts) - counts)[owner]
    edges = first[:, None] + np.minimum(spans, counts[owner, None])
    depth = np.zeros(int(counts.sum()) + 1, np.int64)
    np.add.at(depth, edges[:, 0], 1)
    np.add.at(depth, edges[:, 1], -1)
    outside: Array = np.cumsum(depth[:-1]) == 0
    return outside
