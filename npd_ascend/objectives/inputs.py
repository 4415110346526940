"""Everything that a loss may look at, by name.

Graphs take tensors by position. That order is the order of the fields of ``LossInputs``, restricted to what a loss
needs (``ordered``); both ``pack`` and the compiled loss derive it from here, and nothing else knows of positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields

from npd_ascend.arrays import Array


@dataclass(frozen=True)
class LossInputs:
    """Arrays of N head rows, one for each response token. Rows that do not count hold zeros.

    Axes: N rows, K stored teacher tokens, M terms of the loss (``registry.summands``: cross-entropy first). What no
    term asks for is None.

    Attributes:
        labels: [N] int32, target of cross-entropy: the response token, or the data's label in its place.
        weights: [N, M] float32 of each term: sample weight times token weight; 0 in rows that do not count.
        teacher_ids: [N, K] int32, the tokens that the teacher's annotation stores; a loss over the whole vocabulary
            (``ChunkedLoss``) takes K = V log-probs in its order, and no ids.
        teacher_logprobs: [N, K] float32, the teacher's log-probs of them, over the full vocabulary.
        teacher_labels: [N] float32, the teacher's log-prob of the label.
        rollout_logprobs: [N] float32, log-prob of the response token under the snapshot that wrote it.
        advantages: [N] float32, as they were stored: never normalised, unlike weights.
        parameters: [N, M] float32 of each term, 0 for those without one.
    """

    labels: Array
    weights: Array
    teacher_ids: Array | None = field(default=None, metadata={"stored": "topk"})
    teacher_logprobs: Array | None = field(default=None, metadata={"stored": "topk"})
    teacher_labels: Array | None = field(default=None, metadata={"stored": "topk"})
    rollout_logprobs: Array | None = None
    advantages: Array | None = None
    parameters: Array | None = None

    def pack(self, names: Collection[str]) -> tuple[Array, ...]:
        """The arrays of these names in their fixed order.

        Raises:
            ValueError: one of them was not made.
        """
        found = {name: getattr(self, name) for name in ordered(names)}
        if missing := [name for name, array in found.items() if array is None]:
            raise ValueError(f"the loss needs {', '.join(missing)}, which these inputs lack")
        return tuple(found.values())


STORED: dict[str, str] = {f.name: f.metadata["stored"] for f in fields(LossInputs) if "stored" in f.metadata}
"""Inputs that are read from a stored quantity (``config.stages.QUANTITIES``), with its name."""


def ordered(names: Collection[str]) -> tuple[str, ...]:
    """Names of inputs in the order in which graphs take them."""
    return tuple(f.name for f in fields(LossInputs) if f.name in names)
