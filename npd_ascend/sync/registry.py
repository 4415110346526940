"""What a sync policy is, and policies by name.

A policy is one class in one file of ``policies/``, and its file holds the whole decision: how many refreshes there may
be, where generations end, and what plan, dry run and report say of it. The executor asks it for the span of a
generation; training asks it after every optimiser step, where the span leaves the end open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from npd_ascend.config.schema import Config, SyncConfig
from npd_ascend.errors import UserError
from npd_ascend.registry import Registry


@dataclass(frozen=True)
class Span:
    """The part of the run that is trained on one generation's rollouts, in epochs since the start of the run.

    Attributes:
        start: progress at the first step.
        end: progress at the end; None when it is decided while training.
        snapshot: where the next generation's snapshot is taken (``end - lead``); None as above, or when last.
        last: no generation follows.
    """

    start: float
    end: float | None
    snapshot: float | None
    last: bool


@dataclass(frozen=True)
class Moment:
    """What is known after an optimiser step.

    Attributes:
        generation: number of the generation.
        start: progress at its first step.
        progress: epochs done since the start of the run.
        lag, reverse: KL of the present student from the generator and the other way round, nats a token; None unless
            measured at this step (``sync.lag_every``).
    """

    generation: int
    start: float
    progress: float
    lag: float | None
    reverse: float | None


@dataclass(frozen=True)
class Refresh:
    """A policy's answer: the snapshot is taken now, and the generation ends ``sync.lead`` epochs later.

    Attributes:
        reason: one word, for records.
        why: for people.
    """

    reason: str
    why: str


class SyncPolicy:
    """Base of the policies: never refreshes.

    Args:
        settings: section ``sync``.
        epochs: of the whole run.

    Attributes:
        condition: on what a later generation depends, for the dry run (``if ...``); empty: it comes.
        lag_advice: what keeps the lag lower, a sentence.
    """

    condition: ClassVar[str] = ""
    lag_advice: ClassVar[str] = "More refreshes keep it below."

    def __init__(self, settings: SyncConfig, epochs: float):
        self.settings, self.epochs = settings, epochs

    def check(self) -> None:
        """Whether the settings make sense.

        Raises:
            UserError: they do not.
        """

    @property
    def refreshes(self) -> int:
        """How many there are at most."""
        return 0

    @property
    def lag_bound(self) -> float | None:
        """Lag that should not be exceeded, nats a token; None: the paper's."""
        return None

    def end(self, generation: int) -> float | None:
        """Where a generation ends that another one follows, in epochs since the start of the run; None: ``refresh``
        decides while it trains."""
        return None

    def refresh(self, moment: Moment) -> Refresh | None:
        """Asked after every optimiser step of a generation whose end is open; None: go on.

        The answer must follow from the settings and ``moment`` alone: a run that is resumed asks again, and so does
        each of several ranks.
        """
        return None

    def span(self, generation: int, start: float) -> Span:
        """The span of a generation that begins at progress ``start``."""
        last = generation >= self.refreshes
        end = self.epochs if last else self.end(generation)
        snapshot = None if last or end is None else max(start, end - self.settings.lead)
        return Span(start, end, snapshot, last)


POLICIES: Registry[type[SyncPolicy]] = Registry("sync policy", "sync.policy", "npd_ascend.sync.policies")
_P = TypeVar("_P", bound=type[SyncPolicy])


def register(name: str) -> Callable[[_P], _P]:
    """Decorator that makes a class the policy of its file."""
    return POLICIES.decorator(lambda policy: policy, name)


def find(settings: SyncConfig, epochs: float) -> SyncPolicy:
    """The configured policy.

    Raises:
        UserError: there is none of that name.
    """
    return POLICIES.find(settings.policy)(settings, epochs)


def policy_of(config: Config) -> SyncPolicy:
    """The policy of a run.

    Raises:
        UserError: there is none of that name.
    """
    return find(config.sync, config.train.epochs)


def check(config: Config) -> None:
    """Whether policy and settings fit together.

    Raises:
        UserError: they do not, or a policy of that name is unknown.
    """
    policy = policy_of(config)
    policy.check()
    if config.rollout.source != "student" and policy.refreshes:
        raise UserError(f"rollout.source {config.rollout.source} never changes: set sync.refreshes: 0")
