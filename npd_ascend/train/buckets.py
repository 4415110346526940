"""Parameters in runs that are handled as one flat array: by a collective, and by the owners of a sharded optimizer.

A collective a parameter would be hundreds of small ones a step, and a graph with hundreds of steps in a chain compiles
in time that grows with the square of the depth. A bucket bounds both the tensors and the elements that are joined, so
what a graph holds beside the parameters is one bucket at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MAX_TENSORS = 32
"""Parameters of a bucket; what joins them is one operator, and CANN's take a few dozen inputs."""
MAX_ELEMENTS = 1 << 26
"""Elements of a bucket of a small model: 256 MB in float32."""
MAX_COUNT = 32
"""Buckets into which elements are divided; those of a large model are larger."""


@dataclass(frozen=True)
class Bucket:
    """Parameters ``first`` to ``stop`` of a list, one behind the other, and zeros up to ``length`` elements.

    Attributes:
        first, stop: places in the list.
        starts: first element of each parameter.
        sizes: elements of each parameter.
        length: elements with padding, a multiple of the number of owners.
    """

    first: int
    stop: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    length: int


def make_buckets(sizes: Sequence[int], keys: Sequence[Hashable], owners: int = 1) -> tuple[Bucket, ...]:
    """Buckets of neighbouring parameters with equal keys.

    Args:
        sizes: elements of each parameter.
        keys: what the parameters of a bucket have in common; equal keys stand side by side.
        owners: equal parts into which each bucket can be cut.
    """
    limit = max(MAX_ELEMENTS, -(-sum(sizes) // MAX_COUNT))
    out: list[Bucket] = []
    first = 0
    for i in range(1, len(sizes) + 1):
        full = i - first == MAX_TENSORS or sum(sizes[first : i + 1]) > limit
        if i == len(sizes) or full or keys[i] != keys[first]:
            own = tuple(sizes[first:i])
            starts = tuple(sum(own[:j]) for j in range(len(own)))
            out.append(Bucket(first, i, starts, own, -(-sum(own) // owners) * owners))
            first = i
    return tuple(out)
