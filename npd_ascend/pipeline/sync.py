"""Sync policies: where a generation begins and ends. A new policy is one function here, registered by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from npd_ascend.config.schema import Config


@dataclass(frozen=True)
class Span:
    """The part of the run that is trained on one generation's rollouts, in epochs since the start of the run.

    Attributes:
        start: progress at the first step.
        end: progress at the end; None when training decides by lag.
        snapshot: where the next generation's snapshot is taken (``end - lead``); None as above, or when last.
        last: no generation follows.
    """

    start: float
    end: float | None
    snapshot: float | None
    last: bool


def static(config: Config, generation: int, start: float) -> Span:
    """Refreshes at fixed points: given, or spread evenly (the paper: one, in the middle)."""
    bounds = [*config.sync_points(), config.train.epochs]
    end = bounds[generation]
    last = generation == len(bounds) - 1
    return Span(start, end, None if last else max(start, end - config.sync.lead), last)


def kl(config: Config, generation: int, start: float) -> Span:
    """Refreshes when the measured lag reaches ε, at most ``sync.refreshes`` times."""
    last = generation >= config.sync.refreshes
    return Span(start, config.train.epochs if last else None, None, last)


POLICIES: dict[str, Callable[[Config, int, float], Span]] = {"static": static, "kl": kl}


def span(config: Config, generation: int, start: float) -> Span:
    """The span of a generation that begins at progress ``start``."""
    return POLICIES[config.sync.policy](config, generation, start)
