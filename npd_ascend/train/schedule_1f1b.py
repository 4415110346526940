"""Which pipeline stage does what when: one forward, one backward (PipeDream-flush; Megatron-LM, arXiv:2104.04473).

A stage first runs ahead by as many micro-batches as there are stages behind it, then works forward and backward in
turn, then does the backward passes that are left. So stage s of p holds the inputs of at most p - s micro-batches, and
a step of m micro-batches leaves a stage idle for p - 1 of m + p - 1 turns.

Neighbours meet: each meeting takes both of them, and may carry hidden states one way and a gradient the other way at
once. Between one forward and one backward pass it must: whoever sent first would wait for one that sends as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """Forward pass of a micro-batch. The last stage has none: its backward pass does both."""

    batch: int


@dataclass(frozen=True)
class Backward:
    """Backward pass of a micro-batch."""

    batch: int


@dataclass(frozen=True)
class MeetBefore:
    """A meeting with the stage before: the gradient of a micro-batch's hidden states for those of another."""

    gives: int | None = None
    takes: int | None = None


@dataclass(frozen=True)
class MeetAfter:
    """A meeting with the stage after: the hidden states of a micro-batch for the gradient of those of another."""

    gives: int | None = None
    takes: int | None = None


Action = Forward | Backward | MeetBefore | MeetAfter


def one_forward_one_backward(stage: int, stages: int, batches: int) -> Iterator[Action]:
    """What a stage does in a step, in order.

    Args:
        stage: of ``stages``.
        stages: length of the pipeline.
        batches: micro-batches of the step.
    """
    first, last = stage == 0, stage == stages - 1
    ahead = min(stages - 1 - stage, batches)
    for i in range(ahead):
        if not first:
            yield MeetBefore(takes=i)
        yield Forward(i)
        yield MeetAfter(gives=i)
    if ahead < batches and not first:
        yield MeetBefore(takes=ahead)
    for i in range(batches):
        new, newer = i + ahead, i + ahead + 1
        if not last:
            if new < batches:
                yield Forward(new)
            yield MeetAfter(gives=new if new < batches else None, takes=i)
        yield Backward(i)
        if not first:
            yield MeetBefore(gives=i, takes=newer if newer < batches else None)
