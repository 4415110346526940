"""The value of an answer: a weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Mapping

from npd_ascend.config.schema import Config, Part
from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import REWARDS, TASKS, Attempt, load_data

TASK = "task"
"""In ``reward.parts``: the reward of ``data.task``."""


class Judge:
    """Judges attempts by several rewards; safe in many threads.

    Args:
        parts: by name.

    Attributes:
        names, weights: of the parts, in their order.

    Raises:
        UserError: an unknown reward, options that it does not take, unusable data, or something that it needs is not
            here.
    """

    def __init__(self, parts: Mapping[str, Part]):
        self.names, self.weights = tuple(parts), tuple(p.weight for p in parts.values())
        self._parts = []
        for name, part in parts.items():
            reward, key = REWARDS.find(name), f"reward.parts.{name}"
            value = reward.with_options(part.options, key)
            data = load_data(part.data, f"{key}.data")
            reward.check()
            self._parts.append((value, data))

    def __call__(self, attempt: Attempt) -> list[float]:
        """The parts, without their weights.

        Raises:
            UserError: a reward cannot use its data, raises, or gives no finite number.
        """
        return [value(attempt, data) for value, data in self._parts]

    def value(self, parts: list[float]) -> float:
        """Their weighted sum."""
        return sum(w * p for w, p in zip(self.weights, parts, strict=True))


def parts_of(config: Config) -> dict[str, Part]:
    """The rewards of a run, ``task`` by the name of its reward.

    Raises:
        UserError: ``task`` without ``data.task``.
    """
    out = {}
    for name, part in config.reward.parts.items():
        if name == TASK:
            if config.data.task is None:
                raise UserError("reward.parts names task, but data.task is not set; name the reward itself")
            name = TASKS.find(config.data.task).reward
        out[name] = part
    return out


def needs_answers(config: Config) -> str | None:
    """Name of a reward of the run that compares with the data's answer; None: none does."""
    return next((n for n in parts_of(config) if REWARDS.find(n).needs_answer), None)


def check_rewards(config: Config) -> None:
    """Whether the rewards of a run can be computed, and are of groups.

    Raises:
        UserError: they cannot.
    """
    if not config.reward.parts:
        return
    Judge(parts_of(config))
    name = needs_answers(config)
    if name and not (config.data.answer_field or config.data.task):
        raise UserError(
            f"reward {name} compares with the data's answers, but neither data.answer_field nor data.task says where "
            "they are"
        )
    if config.rollout.paths < 2:
        raise UserError(
            f"an advantage compares the answers to one prompt, and there is {config.rollout.paths}: set "
            "rollout.greedy: false and rollout.samples: 2 or more (8 is usual)"
        )
