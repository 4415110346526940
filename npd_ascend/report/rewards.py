"""What a run that learns from rewards shows: rewards by generation, what training did with them, answers by group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.arrays import Array
from npd_ascend.config.schema import Config
from npd_ascend.errors import UserError
from npd_ascend.report.samples import decoder_of, prompt_of
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import GenerationDir, RunDir

_GROUPS = 4
_TEXT = 240


@dataclass
class Rewards:
    """Values of a generation's answers, and its groups.

    Attributes:
        mean: of the values.
        parts: mean of each reward, without its weight.
        groups: how many.
        equal_high, equal_low: groups whose answers are all worth the same, not below and below the mean.
        spread: mean over groups of the standard deviation within.
        entropy: of the policy along its answers, nats a token: minus the mean log-prob of the tokens it drew.
    """

    mean: float
    parts: dict[str, float]
    groups: int
    equal_high: int
    equal_low: int
    spread: float
    entropy: float | None

    @property
    def equal(self) -> float:
        """Share of groups that teach nothing."""
        return (self.equal_high + self.equal_low) / self.groups if self.groups else float("nan")


@dataclass
class Member:
    """One answer of a group."""

    text: str
    reward: float
    advantage: float
    tokens: int
    parts: list[tuple[str, float]]


@dataclass
class Group:
    """A prompt and all its answers, best first."""

    prompt: str
    answer: str | None
    members: list[Member]
    dropped: bool


def read_rewards(folder: GenerationDir) -> Rewards | None:
    """Of a generation whose rewards and selection are finished, else None.

    Raises:
        UserError, KeyError: they cannot be read.
    """
    if not all((p / "manifest.json").is_file() for p in (folder.rewards, folder.selection)):
        return None
    judged, groups = Dataset.open(folder.rewards, "rewards").extra, Dataset.open(folder.selection, "selection").extra
    groups = groups["groups"]
    return Rewards(
        float(judged["mean"]),
        dict(zip(judged["parts"], map(float, judged["means"]), strict=True)),
        int(groups["groups"]),
        int(groups["equal_high"]),
        int(groups["equal_low"]),
        float(groups["std"]),
        _entropy(folder.rollouts),
    )


def _entropy(rollouts: Path) -> float | None:
    total = tokens = 0.0
    for table in Dataset.open(rollouts, "rollouts").iter_tables(["logprobs"]):
        values = pc.list_flatten(table["logprobs"].combine_chunks())
        total, tokens = total - (pc.sum(values).as_py() or 0.0), tokens + len(values)
    return total / tokens if tokens else None


def groups_of(run: RunDir, config: Config | None, problems: list[str]) -> tuple[int, list[Group]] | None:
    """A few groups of the latest generation that has advantages: those in which answers differ most, and one in which
    they do not; None where there are none."""
    for index in reversed(run.generations()):
        g = run.generation(index)
        if all((p / "manifest.json").is_file() for p in (g.rewards, g.selection)):
            try:
                return index, _groups(run, index, config, problems)
            except UserError as e:
                problems.append(f"groups of generation {index}: {e}")
    return None


def _groups(run: RunDir, index: int, config: Config | None, problems: list[str]) -> list[Group]:
    g = run.generation(index)
    rollouts, rewards = Dataset.open(g.rollouts, "rollouts"), Dataset.open(g.rewards, "rewards")
    table = rollouts.read_all(["prompt_index", "tokens"])
    chosen = Dataset.open(g.selection, "selection").read_all(["advantage", "reward", "reason"])
    prompt, reward = table["prompt_index"].to_numpy(), chosen["reward"].to_numpy()
    prompts, decode = run.prompts_of(index), decoder_of(config, problems)
    responses, parts = rollouts.read_all(["response_ids"])["response_ids"], rewards.read_all(["parts"])["parts"]
    names = rewards.extra["parts"]
    out = []
    for which in pick(prompt, reward):
        places = np.flatnonzero(prompt == which)
        places = places[np.argsort(-reward[places], kind="stable")]
        text, answer = prompt_of(prompts, int(which))
        members = [
            Member(
                _cut(decode(ids) if decode else " ".join(map(str, ids))),
                float(reward[i]),
                float(chosen["advantage"][int(i)].as_py()),
                int(table["tokens"][int(i)].as_py()),
                list(zip(names, parts[int(i)].as_py(), strict=True)),
            )
            for i in places
            for ids in [responses[int(i)].as_py() or []]
        ]
        out.append(Group(_cut(text), answer, members, chosen["reason"][int(places[0])].as_py() == "equal"))
    return out


def pick(prompt: Array, reward: Array) -> list[Any]:
    """Prompts of the groups that are shown: three whose values differ most, and the first whose values are equal.

    Args:
        prompt: [N] int64, which prompt each answer is to.
        reward: [N] its value.
    """
    table = pa.table({"prompt": prompt, "reward": reward}).group_by("prompt").aggregate([("reward", "variance")])
    spread = table["reward_variance"].to_numpy()
    order = np.lexsort((table["prompt"].to_numpy(), -spread))
    different = [i for i in order if spread[i] > 0][: _GROUPS - 1]
    equal = [i for i in order if spread[i] == 0][:1]
    return [table["prompt"][int(i)].as_py() for i in (*different, *equal)]


def _cut(text: str) -> str:
    return text[:_TEXT] + ("…" if len(text) > _TEXT else "")
