"""What a method of distillation is, and methods by name.

Each is the same pipeline with another data source, divergence and weighting: what it changes in a configuration,
and for the synchronous ones how the samples of a step come about and how their tokens are weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import TrainConfig
from npd_ascend.config.study import LiveConfig, Settings
from npd_ascend.objectives.registry import summands
from npd_ascend.registry import Registry

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
    prompt: Array
    response: Array
    origin: Origin
    logprobs: Array | None = None


@dataclass(frozen=True)
class Scored:
    """What is known of a sample's tokens before the step.

    Attributes:
        teacher: [T] float32, the teacher's log-probs of the answer's tokens.
        student: the same of the present student; None unless the method asks for it.
    """

    teacher: Array
    student: Array | None


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


class Method:
    """Base of all methods; as it is: one whose data is made beforehand, an ordinary run.

    Attributes:
        changes: what it changes in the configuration.
    """

    changes: ClassVar[Settings] = {}


class LiveMethod(Method):
    """Base of the synchronous methods: strict on-policy distillation.

    Attributes:
        whole_vocabulary: the divergence is over the whole vocabulary; else over the teacher's ``annotate.k`` best.
        needs_student: ``Scored.student`` is wanted.
        samples_per_prompt: how many samples a prompt brings into a step.
    """

    whole_vocabulary: ClassVar[bool] = True
    needs_student: ClassVar[bool] = False
    samples_per_prompt: ClassVar[int] = 1

    def __init__(self, live: LiveConfig, train: TrainConfig):
        self.live, self.train = live, train

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        """Samples of a step."""
        return source.student(prompts)

    def weigh(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[Array]:
        """Weights of each sample's tokens, [T, 1 + M]: of CE and of each divergence."""
        return [np.ones((len(s.response), 1 + self.terms), np.float32) for s in samples]

    def parameters(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[Array] | None:
        """Parameters of the divergences for each sample, [M]; None: those of the configuration."""
        return None

    @property
    def terms(self) -> int:
        """M, terms of the loss behind cross-entropy."""
        return len(summands(self.train.loss)) - 1


METHODS: Registry[type[Method]] = Registry("method", "method", "npd_ascend.study.methods")
_M = TypeVar("_M", bound=type[Method])

ONE_GENERATION: Settings = {
    "sync.refreshes": 0,
    "select.filter": "none",
    "select.lower": "auto",
    "select.upper": "auto",
    "select.lower_quantile": None,
    "select.upper_quantile": None,
}
"""Of methods that take all answers and refresh none."""


def register(name: str) -> Callable[[_M], _M]:
    """Decorator that makes a class the method of its file."""
    return METHODS.decorator(lambda method: method, name)


def changes(name: str, where: str = "study arm") -> Settings:
    """What a method changes in a configuration.

    Args:
        name: of the method.
        where: who names it, for errors.

    Raises:
        UserError: there is no such method.
    """
    return METHODS.find(name, f"{where}: method").changes


def live_method(name: str) -> type[LiveMethod] | None:
    """The synchronous method of that name; None for one with stored data."""
    found = METHODS.find(name)
    return found if issubclass(found, LiveMethod) else None
