"""What a method of distillation is, and the table of methods by name.

Each is the same pipeline with another data source, divergence and weighting: what it changes in a configuration,
and for the synchronous ones how the samples of a step come about and how their tokens are weighed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from npd_ascend.config.schema import TrainConfig
from npd_ascend.config.study import LiveConfig, Settings
from npd_ascend.objectives.registry import summands

Origin = Literal["student", "reference", "teacher"]


@dataclass(frozen=True)
class Sample:
    """One prompt with an answer to train on.

    Attributes:
        index: number of the prompt.
        prompt, response: int32 token ids.
        origin: who answered.
        logprobs: [T] float32 of the answer under the student that gave it; None for other origins.
    """

    index: int
    prompt: np.ndarray
    response: np.ndarray
    origin: Origin
    logprobs: np.ndarray | None = None


@dataclass(frozen=True)
class Scored:
    """What is known of a sample's tokens before the step.

    Attributes:
        teacher: [T] float32, the teacher's log-probs of the answer's tokens.
        student: the same of the present student; None unless the method asks for it.
    """

    teacher: np.ndarray
    student: np.ndarray | None


class Source(Protocol):
    """Where samples come from."""

    rng: np.random.Generator
    epoch: int
    progress: float
    """Share of the run that is done."""

    def student(self, prompts: Sequence[int]) -> list[Sample]:
        """Fresh answers of the student as it is now; its weights go into the engine first."""

    def reference(self, prompts: Sequence[int]) -> list[Sample]:
        """The data's own answers."""

    def teacher(self, prompts: Sequence[int]) -> list[Sample]:
        """The teacher's answers, made once for the whole run."""

    def everything(self) -> Sequence[int]:
        """All prompts of the arm."""

    def held_out_loss(self) -> float:
        """The student's mean NLL of held-out references, nats a token."""


class LiveMethod:
    """Base of the synchronous methods: strict on-policy distillation.

    Attributes:
        changes: what it changes in the configuration.
        whole_vocabulary: the divergence is over the whole vocabulary; else over the teacher's ``annotate.k`` best.
        needs_student: ``Scored.student`` is wanted.
        samples_per_prompt: how many samples a prompt brings into a step.
    """

    changes: ClassVar[Settings] = {}
    whole_vocabulary: ClassVar[bool] = True
    needs_student: ClassVar[bool] = False
    samples_per_prompt: ClassVar[int] = 1

    def __init__(self, live: LiveConfig, train: TrainConfig):
        self.live, self.train = live, train

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        """Samples of a step."""
        return source.student(prompts)

    def weigh(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[np.ndarray]:
        """Weights of each sample's tokens, [T, 1 + M]: of CE and of each divergence."""
        return [np.ones((len(s.response), 1 + self.terms), np.float32) for s in samples]

    def parameters(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[np.ndarray] | None:
        """Parameters of the divergences for each sample, [M]; None: those of the configuration."""
        return None

    @property
    def terms(self) -> int:
        """M, terms of the loss behind cross-entropy."""
        return len(summands(self.train.loss)) - 1


_STORED: dict[str, Settings] = {}
_LIVE: dict[str, type[LiveMethod]] = {}
_M = TypeVar("_M", bound=type[LiveMethod])


def stored(name: str, **changes: Any) -> None:
    """Enters a method whose data is made beforehand; ``__`` in a key stands for a dot."""
    _STORED[name] = {k.replace("__", "."): v for k, v in changes.items()}


def live(name: str) -> Callable[[_M], _M]:
    """Decorator that enters a synchronous method."""

    def enter(method: _M) -> _M:
        _LIVE[name] = method
        return method

    return enter


def changes() -> dict[str, Settings]:
    """What each method changes in a configuration, by name."""
    _import_all()
    return dict(sorted({**_STORED, **{name: m.changes for name, m in _LIVE.items()}}.items()))


def live_method(name: str) -> type[LiveMethod] | None:
    """The synchronous method of that name; None for one with stored data."""
    _import_all()
    return _LIVE.get(name)


def _import_all() -> None:
    from npd_ascend.study import methods as folder

    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
