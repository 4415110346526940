"""The estimate of a run, stage by stage."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from npd_ascend.config import Config
from npd_ascend.config.schema import Split
from npd_ascend.config.stages import QUANTITIES, STAGES, Stage
from npd_ascend.models.shapes import missing, planned_spec, said_of
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan import memory
from npd_ascend.ops.plan.cuts import what_fits
from npd_ascend.ops.plan.devices import DEFAULT_NPU, Npu, find_npu
from npd_ascend.ops.plan.flops import decode_flops, forward_flops
from npd_ascend.ops.plan.memory import Memory
from npd_ascend.ops.plan.paces import ENDS, LIMIT, Rates, decode_step
from npd_ascend.ops.plan.workload import Workload, count_held_out
from npd_ascend.ops.plan.workload import workload as find_workload
from npd_ascend.recipes import find
from npd_ascend.store.topk_codec import TopKFormat
from npd_ascend.sync.registry import policy_of

if TYPE_CHECKING:
    from npd_ascend.ops.plan.calibrate import Calibration


@dataclass
class StageCost:
    """One line of the estimate, all generations together.

    Attributes:
        stage: as in metrics.jsonl.
        passes: how often the stage runs.
        tokens: processed tokens as the stage counts them: generated, prefilled, or trained on.
        flops: floating-point operations.
        seconds: on one device, at each of ``ENDS`` and at the hardware's ``limit``.
        devices: devices that share the work.
        rests_on: names of ``INPUTS`` that the seconds come from.
        disk: bytes it leaves in the run directory.
        memory: device memory.
        bound: what binds it.
        measured: seconds as calibrated on a finished run.
        start: those of them that do not grow with the work: start of processes, weights, compilation.
    """

    stage: str
    passes: int
    tokens: float
    flops: float
    seconds: dict[str, float]
    devices: int
    rests_on: tuple[str, ...]
    disk: float = 0.0
    memory: Memory | None = None
    bound: str = "compute"
    measured: float | None = None
    start: float = 0.0

    def hours(self, end: str = "central") -> float:
        """Wall hours at one of ``ENDS``, or at the ``limit``."""
        return self.seconds[end] / self.devices / 3600


@dataclass
class Estimate:
    """Cost of a run, with what it rests on.

    Attributes:
        stages: in order.
        npu: device type.
        work: prompt statistics.
        assumptions: for people.
        advice: what bounds the run and what would help, and what does not fit.
        free_disk: bytes free where the run will live.
        host: calibrated seconds of prepare, select and pack.
        cpu: what the seconds are of, for a plan on a CPU; empty: hours on NPUs.
    """

    stages: list[StageCost]
    npu: Npu
    work: Workload
    assumptions: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    free_disk: float = 0.0
    host: float = 0.0
    cpu: str = ""

    @property
    def measured(self) -> float | None:
        """Seconds of the whole run as calibrated; None when a stage is missing in the calibration."""
        known = [s.measured for s in self.stages if s.measured is not None]
        return sum(known) + self.host if known and len(known) == len(self.stages) else None

    def share(self, stage: StageCost) -> float:
        """Share of a stage in the run's time: calibrated where all stages are, else by central figures."""
        if self.measured is None or stage.measured is None:
            return stage.hours() / self.hours()
        return stage.measured / self.measured

    @property
    def disk(self) -> float:
        """Bytes that the run directory will hold."""
        return sum(s.disk for s in self.stages)

    def stage(self, name: str) -> StageCost:
        """The stage of this name."""
        return next(s for s in self.stages if s.stage == name)

    def hours(self, end: str = "central") -> float:
        """Wall hours of the whole run, stages one after the other; ``end`` as for a stage."""
        return sum(s.hours(end) for s in self.stages)

    @property
    def longest(self) -> StageCost:
        """The stage that bounds the run."""
        return max(self.stages, key=self.share)


def estimate(
    config: Config,
    *,
    device: str = DEFAULT_NPU,
    devices: int | None = None,
    workload: Workload | None = None,
    calibration: Calibration | None = None,
    cpu: str = "",
    assume: bool = False,
) -> Estimate:
    """Estimates a run from model shapes, prompt statistics and a device of the table.

    Args:
        config: the run.
        device: name of the NPU.
        devices: how many, over all nodes; None: as many as the configuration uses.
        workload: prompt statistics; None: found from the run or its prompt files.
        calibration: measured rates of a finished run on the same machine.
        cpu: the run is on a CPU, and its seconds are of this; nothing is then said of NPUs.
        assume: prompt files may still be missing.

    Raises:
        UserError: a model is neither there nor known, a prompt file is not usable, or the device is unknown.
    """
    npus = {"fast": find_npu(device, "high"), "central": find_npu(device), "slow": find_npu(device, "low")}
    npu = npus["central"]
    work = workload or find_workload(config, assume=assume)
    student = planned_spec(config.models.student)
    passes = Passes.of(config)
    teacher = planned_spec(config.models.teacher) if passes.asks("teacher") else student
    plan = _Planner(config, npus, devices or devices_of(config), work, student, teacher, passes, assume)
    stages = plan.stages()
    if calibration is not None:
        for s in stages:
            s.measured = calibration.seconds(s.stage, s.tokens, s.passes)
            s.start = calibration.start(s.stage, s.passes)
    out = Estimate(
        stages, npu, work, [*work.notes, *plan.notes(npus=not cpu)], free_disk=_free(config.run.dir), cpu=cpu
    )
    used = [config.models.student, *([config.models.teacher] if teacher is not student else [])]
    if absent := missing(*used):
        out.assumptions.insert(0, said_of(absent))
    out.host = calibration.host(plan.generations) if calibration else 0.0
    out.advice = _advice(config, out, plan) if stages else ["no stage of this recipe needs a device"]
    return out


def devices_of(config: Config) -> int:
    """Devices that a configuration keeps busy in its widest stage."""
    engines = max(
        config.rollout.workers * config.rollout.tensor_parallel,
        config.annotate.workers * config.annotate.tensor_parallel,
    )
    return config.device.count or (
        engines + config.train.ranks if isinstance(config.device.placement, Split) else max(engines, config.train.ranks)
    )


class Passes:
    """Walks a recipe and counts: how often each stage runs, and what annotation is to store.

    Args:
        config: says how many generations there are, at most.
    """

    def __init__(self, config: Config):
        self.generations = policy_of(config).refreshes + 1
        self.count: Counter[str] = Counter()
        self.quantities: dict[str, Collection[str]] = {}

    @classmethod
    def of(cls, config: Config) -> Passes:
        """Those of the configured recipe."""
        passes = cls(config)
        find(config.run.recipe)(config, passes)
        return passes

    def __call__(
        self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
    ) -> None:
        self.count[stage] += 1
        self.quantities[stage] = quantities

    def refresh(self, generation: int) -> bool:
        return generation + 1 < self.generations

    def export(self, generation: int) -> None:
        """Costs nothing."""

    def asks(self, model: str) -> bool:
        """Whether a model has to annotate."""
        return any(QUANTITIES[name].model == model for names in self.quantities.values() for name in names)


class _Planner:
    def __init__(
        self,
        config: Config,
        npus: dict[str, Npu],
        devices: int,
        work: Workload,
        student: ModelSpec,
        teacher: ModelSpec,
        passes: Passes,
        assume: bool,
    ):
        self.config, self.npu, self.devices, self.work = config, npus["central"], devices, work
        self.student, self.teacher, self.passes, self.assume = student, teacher, passes, assume
        self.ends = {end: (npus[end], Rates.at(end)) for end in ENDS} | {"limit": (self.npu, LIMIT)}
        split = config.device.placement
        self.generating = self.training = devices
        if isinstance(split, Split):
            self.training = max(1, round(devices * split.train / (split.train + split.rollout)))
            self.generating = max(1, devices - self.training)
        self.generations = passes.generations
        self.samples = min(work.prompts, config.data.slice or work.prompts) * config.rollout.paths
        self.answers = self.samples * work.answer_tokens
        self.length = work.prompt_tokens + work.answer_tokens

    def notes(self, npus: bool) -> list[str]:
        """What the numbers rest on; ``npus``: with what is known of NPUs."""
        c, policy = self.config, policy_of(self.config)
        upto = "at most " if policy.condition and policy.refreshes else ""
        work = (
            f"{upto}{self.generations} generation(s) of {self.samples:,.0f} samples; every sample kept; "
            f"{c.train.epochs:g} epochs"
        )
        if not npus:
            return [work, "no other job takes the cores meanwhile; lengths are taken at their means"]
        return [
            work,
            f"{self.devices} x {self.npu.name}",
            *(
                [
                    f"device.placement: {self.generating} devices answer and annotate, {self.training} train; beside "
                    "each other for sync.lead epochs before a refresh, which the sum of the stages leaves out"
                ]
                if isinstance(c.device.placement, Split)
                else []
            ),
            "decoding reads all weights and the KV cache of the batch for every token; attention is causal; lengths "
            "are taken at their means",
        ]

    def stages(self) -> list[StageCost]:
        """All stages that run on a device."""
        costs: dict[str, Callable[[Stage], StageCost]] = {
            "rollout": self._rollout,
            "annotate": self._annotate,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        rows = [row for row in STAGES.values() if row.pace and self.passes.count[row.name]]
        return [
            costs[row.module](row)
            for row in rows
            if row.module != "rollout" or self.config.rollout.source != "reference"
        ]

    # ---- stages

    def _evaluate(self, row: Stage) -> StageCost:
        """Held-out prompts of the same lengths."""
        c, times = self.config.evaluate, self.passes.count[row.name]
        answers = count_held_out(c.prompts, c.limit, self.assume) * (1 + c.samples) * times
        cost, share = self._rollout(row), answers / max(1.0, self.samples)
        return replace(
            cost,
            stage=row.name,
            passes=times,
            tokens=answers * self.work.answer_tokens,
            flops=cost.flops / cost.passes * share,
            seconds={end: x / cost.passes * share for end, x in cost.seconds.items()},
            disk=0.0,
            memory=None,
        )

    def _rollout(self, row: Stage) -> StageCost:
        c = self.config
        spec = self.teacher if c.rollout.source == "teacher" else self.student
        context = self.work.prompt_tokens + self.work.answer_tokens / 2
        room = memory.rollout_memory(c, spec, self.npu, self.length)
        tp = c.rollout.tensor_parallel
        engines = max(1, min(c.rollout.workers, self.generating // tp))
        batch = max(1.0, min(c.rollout.max_num_seqs, room.largest, self.samples / engines))
        prefill = forward_flops(spec, self.samples, self.work.prompt_tokens, self.samples)
        steps = {end: decode_step(spec, npu, batch, context, r, tp) for end, (npu, r) in self.ends.items()}
        g = self.generations if c.rollout.source == "student" else 1
        return StageCost(
            "rollout",
            g,
            g * self.answers,
            g * (self.answers * decode_flops(spec, context) + prefill),
            {
                end: g * (self.answers / batch * steps[end].seconds + prefill / (npu.flops * r.prefill))
                for end, (npu, r) in self.ends.items()
            },
            engines * tp,
            ("launch_ms", "bandwidth", "prefill"),
            g * self.answers * 8,
            room,
            steps["central"].bound,
        )

    def _computing(self, flops: float, share: str) -> dict[str, float]:
        """Seconds on one device of a stage that computation binds."""
        return {end: flops / (npu.flops * getattr(r, share)) for end, (npu, r) in self.ends.items()}

    def _annotate(self, row: Stage) -> StageCost:
        c, g, asked = self.config, self.generations, [QUANTITIES[name] for name in self.passes.quantities[row.name]]
        spec, own = (self.teacher, c.annotate) if asked[0].model == "teacher" else (self.student, c.annotate_student)
        flops = tokens = disk = 0.0
        free = {"scores_student"} if c.annotate.student_nll == "rollout" and c.rollout.source == "student" else set()
        if any(q.conditioned and q.name not in free for q in asked):
            flops += forward_flops(spec, self.samples, self.length, self.answers)
            tokens += self.samples * self.length
        if any(not q.conditioned for q in asked):
            flops += forward_flops(spec, self.samples, self.work.answer_tokens, self.answers)
            tokens += self.answers
        if any(q.kind == "topk" for q in asked):
            disk = TopKFormat(c.annotate.k, spec.vocab_size, c.annotate.value_bits).planned_bytes
        return StageCost(
            row.name,
            g,
            g * tokens,
            g * flops,
            self._computing(g * flops, "prefill"),
            self.generating,
            ("prefill",),
            g * self.answers * disk,
            memory.annotate_memory(c, spec, self.npu, own.tensor_parallel),
        )

    def _train(self, row: Stage) -> StageCost:
        c, spec = self.config, self.student
        flops = 3 * c.train.epochs * forward_flops(spec, self.samples, self.length, self.answers)
        # Checkpoints hold fp32 weights and two moments; there is one export a generation and one at the end.
        disk = spec.parameters * (12 * (c.train.keep_checkpoints + 1) + 2 * (self.generations + 1))
        return StageCost(
            "train",
            self.generations,
            c.train.epochs * self.samples * self.length,
            flops,
            self._computing(flops, "train"),
            min(self.training, c.train.ranks),
            ("train",),
            disk,
            memory.train_memory(c, spec, self.npu, recompute=c.train.recompute),
        )


def _advice(config: Config, e: Estimate, plan: _Planner) -> list[str]:
    out = []
    s = e.longest
    why = f", by {s.bound}" if e.measured is None else ", as calibrated"
    if not e.cpu or e.measured is not None:
        out.append(f"{s.stage} bounds the run ({e.share(s):.0%} of the time{why}); what helps: {STAGES[s.stage].time}")
    start = sum(stage.start for stage in e.stages)
    if e.measured and start > e.measured / 4:
        out.append(
            f"{start:.0f} of {e.measured:.0f} s start processes, load weights and compile: fewer sync.refreshes "
            "save a start of each stage, more work a generation makes it a smaller share"
        )
    return [*out, *([] if e.cpu else _npu_advice(config, e, plan)), *_disk_advice(e)]


def _npu_advice(config: Config, e: Estimate, plan: _Planner) -> list[str]:
    """What helps on NPUs, and what does not fit on them."""
    out, s = [], e.longest
    if s.stage == "rollout" and s.memory is not None and config.rollout.memory_fraction < 0.8 and s.bound != "compute":
        out.append(
            f"rollout.memory_fraction is {config.rollout.memory_fraction:g}; with the device to itself 0.9 "
            "holds more sequences"
        )
    for stage in e.stages:
        m = stage.memory
        if m is None or m.fits:
            continue
        line = (
            f"{stage.stage} does not fit: {m.needed / 1e9:.0f} GB a device at {m.knob} {m.chosen}, "
            f"{m.budget / 1e9:.0f} GB are there"
        )
        if m.largest:
            line += f"; at most {m.largest}"
            line = line if stage.stage != "rollout" else line + " at a time, the others wait"
        elif stage.stage == "train":
            line += f"; {what_fits(config, plan.student, plan.npu, plan.devices)}"
        else:
            spec = plan.teacher if stage.stage == "annotate_teacher" else plan.student
            cut = next((n for n in (2, 4, 8, 16) if memory.annotate_memory(config, spec, plan.npu, n).fits), 32)
            key = "rollout" if stage.stage == "rollout" else "annotate"
            line += f"; {key}.tensor_parallel: {cut} would, or a smaller model"
        out.append(line)
    return out


def _disk_advice(e: Estimate) -> list[str]:
    if e.disk <= e.free_disk:
        return []
    return [
        f"the run needs {e.disk / 1e9:.0f} GB of disk, {e.free_disk / 1e9:.0f} GB are free: point run.dir at a "
        "larger disk"
    ]


def _free(root: Path) -> float:
    root = root.absolute()
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free
