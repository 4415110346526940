"""How far training is, counted in epochs of the whole run, and the learning rate there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from npd_ascend.config.schema import TrainConfig

EPSILON = 1e-9
"""Two points of progress closer than this are the same."""


def learning_rate(settings: TrainConfig, progress: float) -> float:
    """Linear warm-up, then one cosine from ``lr`` to ``min_lr`` over the whole run.

    A function of progress alone, so a sparse update does not restart it and a resumed run does not bend it.

    Args:
        settings: ``epochs``, ``lr``, ``min_lr``, ``warmup``.
        progress: epochs done at the end of the step, so that the first step of a warm-up is not wasted on rate 0
            and the last step runs at ``min_lr``.
    """
    done = min(1.0, progress / settings.epochs)
    if done < settings.warmup:
        return settings.lr * done / settings.warmup
    rest = (done - settings.warmup) / (1.0 - settings.warmup) if settings.warmup < 1 else 1.0
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1.0 + math.cos(math.pi * rest))


@dataclass(frozen=True)
class Place:
    """One optimiser step of a generation.

    Attributes:
        index: step in the generation, from 0.
        epoch: local epoch.
        batch: global batch of that epoch.
        begin, end: progress before and after it.
        ends_epoch: whether it is the last of its local epoch.
    """

    index: int
    epoch: int
    batch: int
    begin: float
    end: float
    ends_epoch: bool


class Timeline:
    """Steps of one generation.

    Args:
        start: progress at the first step.
        steps: optimiser steps of each local epoch; none is empty.
    """

    def __init__(self, start: float, steps: Sequence[int]):
        self.start, self.steps = start, list(steps)

    def from_step(self, index: int) -> Iterator[Place]:
        """The steps from number ``index`` on, to the end of the last planned epoch."""
        at = 0
        for epoch, count in enumerate(self.steps):
            for batch in range(max(0, index - at), count):
                begin = self.start + epoch + batch / count
                end = self.start + epoch + (batch + 1) / count
                yield Place(at + batch, epoch, batch, begin, end, batch + 1 == count)
            at += count

    def steps_before(self, progress: float) -> int:
        """Steps that begin before ``progress``: as many as a generation that ends there has."""
        total = 0
        for epoch, count in enumerate(self.steps):
            share = min(1.0, max(0.0, progress - self.start - epoch))
            total += math.ceil(share * count - EPSILON * count)
        return total
