"""What a study compares: tasks, groups of arms, seeds. ``npd study`` reads this from YAML.

An arm is an ordinary run configuration: that of its task, with what its method, its group and the arm itself change.
Arms may be chained: one begins with the student, or learns from the teacher, that another has made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
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
    """A file of ``study/methods`` (npd, sft, supkd, seqkd, off_policy, grpo, on_policy, gkd, minillm, distillm,
    distillm2), or ``module:Class`` of one's own."""
    set: Settings = {}
    live: Settings = {}
    """Settings of ``LiveConfig``, for methods that make their batches live."""
    student: str | None = None
    """``task/group/arm`` whose student, with the same seed, this arm begins with; None: the task's."""
    teacher: str | None = None
    """``task/group/arm`` whose student is this arm's teacher; None: the task's."""

    @property
    def makers(self) -> dict[str, str]:
        """The arms that make its models, by role."""
        return {role: key for role, key in (("student", self.student), ("teacher", self.teacher)) if key is not None}


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

    @model_validator(mode="after")
    def _known_makers(self) -> StudyConfig:
        for key in self._keys():
            self._check_makers(key, ())
        return self

    def _keys(self) -> list[str]:
        return [f"{task}/{g}/{arm}" for g, group in self.groups.items() for task in group.tasks for arm in group.arms]

    def seeds_of(self, group: str) -> list[int]:
        """Seeds of a group's arms."""
        own = self.groups[group].seeds
        return self.study.seeds if own is None else own

    def _check_makers(self, key: str, above: tuple[str, ...]) -> None:
        """What an arm begins with is made by another one, with the same seeds, and not from what the arm makes."""
        _, group, name = key.split("/")
        for role, maker in self.groups[group].arms[name].makers.items():
            where = f"groups.{group}.arms.{name}.{role}"
            if maker not in self._keys():
                raise ValueError(f"{where} is {maker!r}; expected task/group/arm, one of: {', '.join(self._keys())}")
            if maker in (*above, key):
                raise ValueError(
                    f"{where}: {maker} itself begins with what this arm makes; one of them must come first"
                )
            if missing := set(self.seeds_of(group)) - set(self.seeds_of(maker.split("/")[1])):
                raise ValueError(
                    f"{where}: {maker} does not run with seed {min(missing)}; give both groups the same seeds"
                )
            self._check_makers(maker, (*above, key))


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
        makers: arms whose students take the place of ``config.models.student`` and ``teacher``, by role.
        kept: its student is some other arm's model.
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
    makers: Mapping[str, Arm] = field(default_factory=dict)
    kept: bool = False

    @property
    def level(self) -> int:
        """How many arms have to run before it, one after the other."""
        return max((1 + m.level for m in self.makers.values()), default=0)

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
    named = {key for group in study.groups.values() for arm in group.arms.values() for key in arm.makers.values()}

    @cache
    def make(task: str, group_name: str, name: str, seed: int) -> Arm:
        group, given = study.groups[group_name], study.tasks[task]
        arm, where = group.arms[name], f"of study arm {group_name}/{name}"
        tree = apply(
            trees[task],
            given.set,
            changes(arm.method, f"config {where}"),
            group.set,
            arm.set,
            {"run.seed": seed, "run.dir": str(study.study.dir / "arms" / task / group_name / name / str(seed))},
        )
        return Arm(
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
            {role: make(*key.split("/"), seed) for role, key in arm.makers.items()},
            f"{task}/{group_name}/{name}" in named,
        )

    for group_name, group in study.groups.items():
        for seed in study.seeds_of(group_name):
            for task in group.tasks:
                for name in group.arms:
                    yield make(task, group_name, name, seed)
