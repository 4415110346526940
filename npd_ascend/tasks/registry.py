"""Rewards and tasks by name.

A reward is one function in one file of ``rewards/``: it takes an ``Attempt``, the content of a JSON file if it needs
one, and options as keywords, and says how good the answer is. 1 is right and 0 wrong where it judges; where it shapes
(length, format) it may be any number. The same functions serve training (``reward.parts``) and evaluation
(``evaluate.checker``: right from 1 on). Whatever a model writes is data: none raises for a response, however odd. A
plain function of the user's own (``module:function``) serves as it is.

A task is one file of ``known/``: how the rows of a data set are read, what is asked, and which reward judges it.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npd_ascend.config.schema import Config, EvaluateConfig
from npd_ascend.errors import UserError
from npd_ascend.registry import Registry


@dataclass(frozen=True)
class Attempt:
    """One response to be judged.

    Attributes:
        prompt: the user's turn.
        response: what the model answered, without special tokens and thinking text.
        answer: what the data gives as right, or None.
        tokens: of the whole response, thinking included.
        truncated: whether it ran into the limit of new tokens.
    """

    prompt: str
    response: str
    answer: str | None
    tokens: int = 0
    truncated: bool = False


Judge = Callable[..., float]


@dataclass(frozen=True)
class Reward:
    """A registered reward.

    Attributes:
        name: in a configuration.
        judge: (attempt, data, **options) -> how good it is.
        options: keywords that it takes, with their defaults; those without one must be given.
        needs_answer: whether it compares with ``Attempt.answer``.
        check: raises ``UserError`` where this machine lacks what it needs.
    """

    name: str
    judge: Judge
    options: Mapping[str, Any]
    needs_answer: bool = False
    check: Callable[[], None] = field(default=lambda: None)

    @classmethod
    def of(cls, judge: Judge, name: str = "", **more: Any) -> Reward:
        """A reward from a function."""
        keywords = (p for p in inspect.signature(judge).parameters.values() if p.kind is p.KEYWORD_ONLY)
        return cls(name or judge.__name__, judge, {p.name: p.default for p in keywords}, **more)

    def with_options(self, options: Mapping[str, Any], key: str) -> Callable[[Attempt, Any], float]:
        """(attempt, data) -> a finite number, under these options.

        Args:
            options: by name.
            key: setting that gives them.

        Raises:
            UserError: it takes no such option, or one that it needs is missing; later, when the reward raises or
                answers with something else than a finite number.
        """
        if unknown := sorted(set(options) - set(self.options)):
            raise UserError(
                f"{key}: reward {self.name} has no option {unknown[0]!r}; it takes {', '.join(self.options) or 'none'}"
            )
        if missing := [n for n, default in self.options.items() if default is inspect.Parameter.empty]:
            if missing := [n for n in missing if n not in options]:
                raise UserError(f"{key}: reward {self.name} needs the option {missing[0]!r}")

        def value(attempt: Attempt, data: Any) -> float:
            try:
                found = float(self.judge(attempt, data, **options))
            except UserError:
                raise
            except Exception as e:  # whatever a user's function does
                raise UserError(f"reward {self.name} raised {type(e).__name__}: {e} (at {_shown(attempt)})") from e
            if not math.isfinite(found):
                raise UserError(f"reward {self.name} gave {found}, which is no finite number (at {_shown(attempt)})")
            return found

        return value


def _shown(attempt: Attempt) -> str:
    return f"prompt {attempt.prompt[:60]!r}, response {attempt.response[:60]!r}"


REWARDS: Registry[Reward] = Registry("reward", "reward.parts", "npd_ascend.tasks.rewards", wrap=Reward.of)


def register(
    name: str, needs_answer: bool = False, check: Callable[[], None] = lambda: None
) -> Callable[[Judge], Judge]:
    """Decorator that makes a function the reward of its file; see ``Reward``."""
    return REWARDS.decorator(lambda judge: Reward.of(judge, name, needs_answer=needs_answer, check=check), name)


class Checker:
    """A reward that says right or wrong, as evaluation asks it.

    Args:
        name: of the reward.
        data: its JSON file, or None.

    Raises:
        UserError: unknown name, unusable data, or this machine lacks what it needs.
    """

    def __init__(self, name: str, data: Path | None):
        reward = REWARDS.find(name, "evaluate.checker")
        reward.check()
        self._value = reward.with_options({}, "evaluate.checker")
        self._data = load_data(data, "evaluate.checker_data")

    @classmethod
    def of(cls, config: Config) -> Checker:
        """The checker of a run's evaluation."""
        return cls(checker_of(config), config.evaluate.checker_data)

    def __call__(self, attempt: Attempt) -> bool:
        """Whether it is right.

        Raises:
            UserError: the reward cannot use its data or raises.
        """
        return self._value(attempt, self._data) >= 1


def checker_of(config: Config) -> str:
    """Name of the reward that checks held-out answers: the configured one, or that of the task."""
    name = config.evaluate.checker
    if config.data.task is not None and name == EvaluateConfig.model_fields["checker"].default:
        return TASKS.find(config.data.task).reward
    return name


def load_data(path: Path | None, key: str) -> Any:
    """Content of a reward's JSON file, or None without one.

    Args:
        path: the file.
        key: setting that names it.

    Raises:
        UserError: missing, or not JSON.
    """
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{key} {path}: cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{key} {path}: not valid JSON") from None


@dataclass(frozen=True)
class Task:
    """A kind of data set.

    Attributes:
        name: in ``data.task``.
        fields: of a row, that it reads.
        read: row -> (what is asked, what is right).
        reward: which one judges it.
    """

    name: str
    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[str, str]]
    reward: str

    def of(self, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        """What a row asks, and what is right.

        Args:
            row: its fields.
            where: file and line, for messages.

        Raises:
            UserError: it lacks a field, or one is not what it should be.
        """
        if missing := [n for n in self.fields if row.get(n) is None]:
            raise UserError(f"{where}: no field {missing[0]!r}; data.task {self.name} reads {', '.join(self.fields)}")
        try:
            return self.read(row)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as e:
            raise UserError(f"{where}: data.task {self.name} cannot read this row ({type(e).__name__}: {e})") from None


TASKS: Registry[Task] = Registry("task", "data.task", "npd_ascend.tasks.known")


def task(name: str, *fields: str, reward: str) -> Callable[[Any], Any]:
    """Decorator that makes a function from a row to (what is asked, what is right) the task of its file."""
    return TASKS.decorator(lambda read: Task(name, fields, read, reward), name)
