"""What a study compares: tasks, groups of arms, seeds. ``npd study`` reads this from YAML.

An arm is an ordinary run configuration: that of its task, with what its method, its group and the arm itself change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from npd_ascend.config.load import apply, parse_config, read_tree, validated
from npd_ascend.config.schema import Config, Count, Fraction01, Natural, Positive, Section

Settings = dict[str, Any]
"""``section.key: value`` pairs, as in ``--set``."""


class LiveConfig(Section):
    """A synchronous loop: batches are made while training waits for them."""

    prompts_per_step: Count = 40
    """Prompts of an optimiser step."""
    layout: Literal["padded", "packed"] = "padded"
    """``padded``: one sample a row, as the baselines' papers run; ``packed``: rows of ``pack.row_length``."""
    buckets: list[Count] = []
    """padded: lengths that rows are padded to, the smallest that holds the batch is taken; empty: the longest prompt
    and answer that there can be."""
    rows: Count | None = None
    """Rows a forward pass; None: padded, all samples of a step; packed, ``train.micro_batch``."""
    student_fraction: Fraction01 = 0.5
    """gkd: share of the steps on the student's answers [TRL: 0.5]."""
    replay_capacity: Count = 1000
    """distillm: samples in the replay buffer."""
    phi_start: Fraction01 = 0.0
    """distillm: share of steps on the student's answers at the start."""
    phi_step: Fraction01 = 0.1
    """distillm: rise of that share whenever the held-out loss has risen by ``phi_tolerance``."""
    phi_tolerance: Positive = 0.1
    dev_samples: Count = 64
    """distillm: held-out references whose loss steers phi, once an epoch."""
    alpha: Fraction01 = 0.1
    """distillm2: base of the skew; per sample between 0.01 and this."""
    gamma: Fraction01 = 0.95
    """minillm: discount of later rewards."""
    reward_scale: Positive = 0.5
    """minillm: factor on log p − log q."""
    reward_clip: Positive = 100.0
    """minillm: bound of a token's reward."""
    lm_weight: Natural = 1
    """minillm: weight of plain CE on reference answers."""


class TaskConfig(Section):
    """A task: models, prompts, lengths and training settings of an ordinary configuration."""

    config: Path
    """YAML of a run; its ``run.dir`` is not used."""
    set: Settings = {}
    prompts: Count | None = None
    """Rows drawn from the task's prompts, other ones for each seed; None: all."""
    exposure_prompts: Count = 128
    """Held-out prompts along whose answers the two models are compared."""


class ArmConfig(Section):
    """One thing to be compared."""

    method: str = "npd"
    """A file of ``study/methods`` (npd, sft, supkd, seqkd, off_policy, on_policy, gkd, minillm, distillm, distillm2),
    or ``module:Class`` of one's own."""
    set: Settings = {}
    live: Settings = {}
    """Settings of ``LiveConfig``, for methods that make their batches live."""


class GroupConfig(Section):
    """Arms that are compared with each other."""

    tasks: list[str]
    arms: dict[str, ArmConfig] = Field(min_length=1)
    seeds: list[Natural] | None = None
    """None: those of the study."""
    set: Settings = {}
    live: Settings = {}
    evaluations: Count = 1
    """Accuracy is measured so often, evenly over the run and at its end."""
    exposure: bool = False
    """At the end the models are also compared along the student's own answers."""
    note: str = ""
    """What a reader of the report must know of this comparison."""
    timed: bool = False
    """These arms run one at a time, with all cores, and make everything themselves."""


class StudySection(Section):
    """Where a study lives and how it is run."""

    dir: Path
    seeds: list[Natural] = Field([0, 1, 2], min_length=1)
    workers: Count = 2
    """Processes for arms that are not timed; each gets its part of the cores."""


class StudyConfig(Section):
    """A whole study."""

    study: StudySection
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    groups: dict[str, GroupConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_tasks(self) -> StudyConfig:
        for name, group in self.groups.items():
            for task in group.tasks:
                if task not in self.tasks:
                    raise ValueError(f"groups.{name}.tasks names {task!r}; there are: {', '.join(self.tasks)}")
        for name in [*self.tasks, *self.groups, *(a for g in self.groups.values() for a in g.arms)]:
            if not name or not all(c.isalnum() or c in "-_.+" for c in name):
                raise ValueError(f"name {name!r}: letters, digits and - _ . + only, since it becomes a path")
        return self


@dataclass(frozen=True)
class Arm:
    """One run of a study.

    Attributes:
        task, group, name, seed: what it is.
        method: registered method.
        config: resolved configuration; ``run.dir`` is the arm's own.
        live: settings of a synchronous loop.
        evaluations, exposure, timed: of its group.
        subset: prompts drawn for the seed.
        exposure_prompts: see ``TaskConfig``.
    """

    task: str
    group: str
    name: str
    seed: int
    method: str
    config: Config
    live: LiveConfig
    evaluations: int
    exposure: bool
    timed: bool
    subset: int | None
    exposure_prompts: int

    @property
    def key(self) -> str:
        """``task/group/arm/seed``."""
        return f"{self.task}/{self.group}/{self.name}/{self.seed}"


def load_study(path: str | Path, overrides: list[str] | None = None) -> StudyConfig:
    """Reads a study; see ``load_config`` for the overrides.

    Raises:
        UserError: unreadable, unknown key, bad value, contradiction.
    """
    return validated(StudyConfig, read_tree(path, overrides, StudyConfig), str(path))


def arms_of(study: StudyConfig, changes: Callable[[str, str], Settings]) -> Iterator[Arm]:
    """All arms, group by group and seed by seed.

    Args:
        study: the study.
        changes: from the name of a method, and the arm that names it, to what it changes in a configuration.

    Raises:
        UserError: an arm's settings contradict each other, or its method is unknown.
    """
    trees = {name: read_tree(task.config) for name, task in study.tasks.items()}
    for group_name, group in study.groups.items():
        for seed in group.seeds if group.seeds is not None else study.study.seeds:
            for task in group.tasks:
                for name, arm in group.arms.items():
                    where = f"of study arm {group_name}/{name}"
                    given = study.tasks[task]
                    tree = apply(
                        trees[task],
                        given.set,
                        changes(arm.method, f"config {where}"),
                        group.set,
                        arm.set,
                        {
                            "run.seed": seed,
                            "run.dir": str(study.study.dir / "arms" / task / group_name / name / str(seed)),
                        },
                    )
                    yield Arm(
                        task,
                        group_name,
                        name,
                        seed,
                        arm.method,
                        parse_config(tree, where),
                        validated(LiveConfig, {**group.live, **arm.live}, f"{where}, live"),
                        group.evaluations,
                        group.exposure,
                        group.timed,
                        given.prompts,
                        given.exposure_prompts,
                    )
