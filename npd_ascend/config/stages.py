"""What a run stores, and the table of its stages. All that is said of a stage elsewhere follows from its row here.

A stage is a row of ``STAGES`` and a package: its job's class in ``npd_ascend.<module>.job``, ``run(job)`` in
``npd_ascend.<module>.stage``. From the row follow the values of ``--stage``, the command, the child's dispatch, how its
job is filled (see ``pipeline/steps.py``), what is discarded with a damaged shard, the devices, the lines of
``--dry-run``, the headings of report and plan, and what helps when memory runs out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from npd_ascend.config.job import Job
from npd_ascend.errors import UserError

Model = Literal["teacher", "student"]
Side = Literal["rollout", "train"]


@dataclass(frozen=True)
class Data:
    """A dataset of a run.

    Attributes:
        name: under which stages speak of it.
        kind: see ``store.dataset.Dataset``.
        place: its folder below the run directory.
        follows: dataset whose rows it repeats, shard by shard: it goes when a shard of that one is made again.
    """

    name: str
    kind: str
    place: str
    follows: str | None = None

    def folder(self, generation: int, evaluation: str = "") -> str:
        """Its folder in a generation, or for an evaluation of that name."""
        return self.place.format(generation=generation, evaluation=evaluation.replace(" ", "-"))


@dataclass(frozen=True)
class Quantity(Data):
    """What a model says of every answer, stored by sample, independent of filter, loss and packing.

    Attributes:
        model: who is asked.
        target: field of ``AnnotateJob`` that asks for it.
        free: quantities that the same forward pass gives at no cost, and that are stored with it.
    """

    model: Model = "teacher"
    target: str = ""
    free: tuple[str, ...] = ()

    @property
    def conditioned(self) -> bool:
        """Whether it comes from the pass over prompt and answer, rather than from that over the answer alone."""
        return self.target != "unconditioned"


def _generation(name: str) -> str:
    return f"generations/{{generation:03d}}/{name}"


def _scores(target: str, model: Model) -> Quantity:
    name = f"{target}_{model}"
    return Quantity(name, "scores", _generation(name), "rollouts", model, target)


DATA: dict[str, Data] = {
    d.name: d
    for d in (
        Data("prompts", "prompts", "prompts/train"),
        Data("eval_prompts", "prompts", "prompts/eval"),
        Data("drawn", "prompts", _generation("prompts")),
        Data("rollouts", "rollouts", _generation("rollouts")),
        Data("rewards", "rewards", _generation("rewards"), "rollouts"),
        Quantity("topk", "topk", _generation("topk"), "rollouts", "teacher", "topk", free=("scores_teacher",)),
        _scores("scores", "teacher"),
        _scores("unconditioned", "teacher"),
        _scores("scores", "student"),
        _scores("unconditioned", "student"),
        Data("selection", "selection", _generation("selection"), "rollouts"),
        Data("packs", "packs", _generation("packs")),
        Data("answers", "rollouts", "evaluations/{evaluation}/rollouts"),
    )
}
QUANTITIES: dict[str, Quantity] = {name: d for name, d in DATA.items() if isinstance(d, Quantity)}


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        name: in ``--stage``, metrics.jsonl, job and log files. ``annotate_teacher`` also answers to ``annotate``.
        title: heading for people.
        does: help of the command.
        module: ``npd_ascend.<module>.stage`` runs it.
        job_class: its job's class in ``npd_ascend.<module>.job``.
        reads: fields of the job that are inputs, with the dataset that fills each. ``snapshot`` is the student that
            training exports, ``trained`` the end of the training before: no datasets, but waited for like these.
        writes: datasets that it finishes; empty: a JSON file, its job's ``out``.
        needs: ``module:function`` from a configuration to the stored quantities that the stage looks at.
        side: devices that it works on; None: none.
        background: it may run while stages go on that do not read what it writes.
        shared: a study makes its outputs once for all arms that have the same inputs.
        meter: name under which it reports progress, when not its module's.
        booked: name in metrics.jsonl, when not its own.
        pace: which rate of a device bounds it, for the plan; None: it needs no device.
        memory: what to change when memory runs out.
        time: what to change when it takes too long.
    """

    name: str
    title: str
    does: str
    module: str
    job_class: str
    reads: dict[str, str] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    needs: str = ""
    side: Side | None = None
    background: bool = False
    shared: bool = False
    meter: str = ""
    booked: str = ""
    pace: Literal["decode", "prefill", "train"] | None = None
    memory: str = "use a larger machine"
    time: str = ""

    @property
    def job(self) -> type[Job]:
        """Its job."""
        found: type[Job] = getattr(import_module(f"npd_ascend.{self.module}.job"), self.job_class)
        return found

    @property
    def group(self) -> str:
        """Name of the command that runs it, alone or with its like."""
        return self.name.split("_")[0]

    @property
    def reports(self) -> str:
        """What the names begin with under which its processes report progress."""
        return self.meter or self.module

    @property
    def heading(self) -> str:
        """Name under which its time is booked."""
        return self.booked or self.name


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_ROLLOUT_MEMORY = "lower rollout.max_num_seqs, rollout.kv_cache_gib, rollout.memory_fraction or rollout.workers"
_ANNOTATE_MEMORY = (
    "lower annotate.micro_batch, annotate.vocab_chunk_rows, annotate.row_length or annotate.workers, or cut the "
    "teacher over devices with annotate.tensor_parallel"
)

STAGES: dict[str, Stage] = {
    s.name: s
    for s in (
        Stage(
            "prepare", "prepare", "Tokenises the prompts", "data", "PrepareJob",
            writes=("prompts",), meter="prepare", shared=True,
        ),
        Stage(
            "prepare_eval", "prepare, held-out prompts", "Tokenises the prompts", "data", "PrepareJob",
            writes=("eval_prompts",), meter="prepare", booked="prepare", shared=True,
        ),
        Stage(
            "draw", "draw", "Draws the prompts of a generation", "draw", "DrawJob", reads={"source": "prompts"},
            writes=("drawn",),
        ),
        Stage(
            "rollout", "rollout", "Lets the student's snapshot answer the prompts", "rollout", "RolloutJob",
            reads=_same("prompts", "snapshot"), writes=("rollouts",), side="rollout", shared=True, pace="decode",
            memory=_ROLLOUT_MEMORY,
            time="more rollout.workers, fewer sync.refreshes, a shorter rollout.max_new_tokens; a larger "
            "rollout.max_num_seqs while the KV cache has room; sync.lead hides it behind training",
        ),
        Stage(
            "reward", "reward", "Judges the answers", "reward", "RewardJob", reads=_same("prompts", "rollouts"),
            writes=("rewards",), shared=True,
            time="more reward.workers where a service judges; cheaper rewards (number for math)",
        ),
        Stage(
            "annotate_teacher", "annotate, teacher", "Scores the answers with teacher and student by packed prefill",
            "annotate", "AnnotateJob",
            reads=_same("prompts", "rollouts"), writes=("topk", "scores_teacher", "unconditioned_teacher"),
            side="rollout", shared=True, pace="prefill", memory=_ANNOTATE_MEMORY,
            time="more devices; a select.filter that needs no pass without the prompt (none, fire) saves that pass",
        ),
        Stage(
            "annotate_student", "annotate, student", "Scores the answers with teacher and student by packed prefill",
            "annotate", "AnnotateJob",
            reads=_same("prompts", "rollouts", "snapshot"), writes=("scores_student", "unconditioned_student"),
            side="rollout", shared=True, pace="prefill", memory=_ANNOTATE_MEMORY,
            time="annotate.student_nll: rollout takes half of it from the rollout's log-probs",
        ),
        Stage(
            "select", "select", "Decides which samples are trained on", "select", "SelectJob",
            reads=_same("rollouts"), writes=("selection",), needs="npd_ascend.select.registry:needed",
        ),
        Stage(
            "pack", "pack", "Plans the packed rows of each epoch", "pack", "PackJob",
            reads=_same("prompts", "rollouts", "selection", "trained"), writes=("packs",),
        ),
        Stage(
            "train", "train", "Trains to the next refresh or the end", "train", "TrainJob",
            reads=_same("prompts", "rollouts", "selection", "packs", "snapshot", "trained"),
            needs="npd_ascend.objectives.registry:needed", side="train", background=True, pace="train",
            memory="lower train.micro_batch, train.vocab_chunk_rows or pack.row_length (train.global_batch may stay), "
            "or set train.recompute: true; train.optimizer_sharding and train.tensor_parallel cut the model over "
            "devices, train.context_parallel the rows",
            time="more train.data_parallel, fewer train.epochs",
        ),
        Stage(
            "evaluate_rollout", "evaluate, answers", "Answers held-out prompts and checks them", "rollout",
            "RolloutJob",
            reads={"prompts": "eval_prompts", "snapshot": "snapshot"}, writes=("answers",), side="rollout",
            booked="evaluate", memory=_ROLLOUT_MEMORY,
        ),
        Stage(
            "evaluate", "evaluate", "Answers held-out prompts and checks them", "evaluate", "EvaluateJob",
            reads={"prompts": "eval_prompts", "rollouts": "answers"}, pace="decode",
            time="a smaller evaluate.limit, evaluate.at_refresh: false",
        ),
    )
}  # fmt: skip


def named(name: str) -> list[Stage]:
    """The stages that answer to a name: one, or all of a group; none when there is no such stage."""
    return [s for s in STAGES.values() if name in (s.name, s.group)]


def stage_names() -> list[str]:
    """All names of ``--stage``."""
    return list(dict.fromkeys(name for s in STAGES.values() for name in (s.group, s.name)))


def check_stage(name: str) -> None:
    """Whether a stage answers to a name.

    Raises:
        UserError: none does.
    """
    if not named(name):
        raise UserError(f"--stage {name}: there is no such stage; known: {', '.join(stage_names())}")


def groups() -> dict[str, Stage]:
    """First stage of each group."""
    first: dict[str, Stage] = {}
    for stage in STAGES.values():
        first.setdefault(stage.group, stage)
    return first


def title(name: str) -> str:
    """Heading of a stage; a name that is not in the table (of another version's run) as it is."""
    return STAGES[name].title if name in STAGES else name


def of_module(module: str) -> Stage | None:
    """The first stage that a module runs."""
    return next((s for s in STAGES.values() if s.module == module), None)


def side_of(job: type[Job]) -> Side | None:
    """Devices that the stages with this job work on."""
    return next((s.side for s in STAGES.values() if s.job is job), None)


def followers(name: str) -> list[Data]:
    """Datasets that repeat the rows of this one, at any distance."""
    direct = [d for d in DATA.values() if d.follows == name]
    return [*direct, *(f for d in direct for f in followers(d.name))]
