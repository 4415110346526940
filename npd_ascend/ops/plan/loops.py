"""How long other ways of distilling take on the same devices, for ``npd plan --against``.

Each loop is counted step by step from the shapes of the models and the inputs of ``paces``. No input is fitted to a
figure of the paper, and the text shows which of them decide the ratio.

A synchronous loop answers one step's prompts, waits for the longest answer, lets the teacher score the answers, trains
once and hands the new weights to the engine. NPD answers all prompts with a full engine and hands over weights once a
generation. Both get the same engine, the same kernels and, unless an input says otherwise, the same density of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from statistics import NormalDist

from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan.devices import Npu
from npd_ascend.ops.plan.flops import forward_flops, weight_bytes
from npd_ascend.ops.plan.paces import Rates, decode_step
from npd_ascend.ops.plan.workload import Workload

_PIECES = 200
"""Pieces of the answers' length over which a decoding batch is summed."""
GKD_FRACTION = 0.5
"""Steps on the student's answers: λ_s of GKD (arXiv:2306.13649; TRL's default)."""


@dataclass(frozen=True)
class Setting:
    """What is distilled, and on what.

    Attributes:
        student, teacher: shapes.
        npu: device.
        devices: how many.
        work: prompts and mean lengths.
        epochs: of training.
        refreshes: of NPD's snapshot.
        engine_batch: sequences that an engine of NPD decodes at once, one engine a device.
        unconditioned: whether NPD's filter asks both models without the prompt too.
        horizon: fraction of an answer's tokens that is generated, scored and trained on.
    """

    student: ModelSpec
    teacher: ModelSpec
    npu: Npu
    devices: int
    work: Workload
    epochs: float
    refreshes: int
    engine_batch: int
    unconditioned: bool = True
    horizon: float = 1.0

    @property
    def answer(self) -> float:
        """Mean tokens of an answer."""
        return self.work.answer_tokens * self.horizon

    @property
    def length(self) -> float:
        """Mean tokens of prompt and answer."""
        return self.work.prompt_tokens + self.answer


@dataclass(frozen=True)
class Cost:
    """Seconds of a loop by what they go to; all devices work side by side."""

    rollout: float = 0.0
    score: float = 0.0
    train: float = 0.0
    weights: float = 0.0

    @property
    def total(self) -> float:
        """Seconds in all."""
        return float(sum(getattr(self, f.name) for f in fields(self)))

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))


def batch_rollout(s: Setting, batch: float, r: Rates, spec: ModelSpec | None = None) -> float:
    """Seconds in which one engine answers ``batch`` prompts that start together, until the longest answer ends."""
    spec = spec or s.student
    sigma = math.sqrt(math.log1p(r.length_spread**2))
    lengths = NormalDist(math.log(s.answer) - sigma**2 / 2, sigma)
    longest = math.exp(lengths.inv_cdf(1 - 1 / (batch + 1)))
    seconds, width = 0.0, longest / _PIECES
    for i in range(_PIECES):
        done = (i + 0.5) * width
        alive = max(1.0, batch * (1 - lengths.cdf(math.log(done))))
        seconds += width * decode_step(spec, s.npu, alive, s.work.prompt_tokens + done, r).seconds
    return seconds + _prefill(spec, batch, s.work.prompt_tokens, batch, s.npu, r)


def full_rollout(s: Setting, prompts: float, r: Rates, spec: ModelSpec | None = None) -> float:
    """Seconds in which all devices answer ``prompts`` prompts, engines kept full until the last ones drain."""
    spec = spec or s.student
    each = prompts / s.devices
    batch = min(float(s.engine_batch), each)
    steady = max(0.0, each - batch) * s.answer / batch
    middle = s.work.prompt_tokens + s.answer / 2
    return (
        steady * decode_step(spec, s.npu, batch, middle, r).seconds
        + _prefill(spec, max(0.0, each - batch), s.work.prompt_tokens, each, s.npu, r)
        + batch_rollout(s, batch, r, spec)
    )


def score(
    s: Setting,
    spec: ModelSpec,
    answers: float,
    r: Rates,
    *,
    conditioned: bool = True,
    unconditioned: bool = False,
    density: float = 1.0,
) -> float:
    """Seconds in which all devices prefill answers, after their prompts and, where asked, without."""
    out = 0.0
    if conditioned:
        out += _prefill(spec, answers, s.length, answers * s.answer, s.npu, r)
    if unconditioned:
        out += _prefill(spec, answers, s.answer, answers * s.answer, s.npu, r)
    return out / s.devices / density


def train(s: Setting, answers: float, r: Rates, density: float = 1.0) -> float:
    """Seconds of forward and backward passes over ``answers`` answers, on all devices."""
    flops = 3 * forward_flops(s.student, answers, s.length, answers * s.answer)
    return flops / (s.npu.flops * r.train) / s.devices / density


def _prefill(spec: ModelSpec, sequences: float, length: float, heads: float, npu: Npu, r: Rates) -> float:
    return forward_flops(spec, sequences, length, heads) / (npu.flops * r.prefill) if sequences else 0.0


# ---- loops


def npd(s: Setting, r: Rates) -> Cost:
    """Near-Policy Distillation: a pass of rollout and annotation a generation, training over all epochs."""
    n = s.work.prompts
    generation = Cost(
        rollout=full_rollout(s, n, r),
        # The student's conditioned log-probs come with the rollout.
        score=score(s, s.teacher, n, r, unconditioned=s.unconditioned)
        + (score(s, s.student, n, r, conditioned=False, unconditioned=True) if s.unconditioned else 0.0),
        weights=_hand_over(s, r),
    )
    return generation * (s.refreshes + 1) + Cost(train=train(s, n * s.epochs, r))


def sft(s: Setting, r: Rates) -> Cost:
    """Training on reference answers of the same length."""
    return Cost(train=train(s, s.work.prompts * s.epochs, r))


def supkd(s: Setting, r: Rates) -> Cost:
    """The same with a live teacher in every step."""
    answers = s.work.prompts * s.epochs
    return Cost(score=score(s, s.teacher, answers, r, density=r.padded), train=train(s, answers, r, r.padded))


def seqkd(s: Setting, r: Rates) -> Cost:
    """The teacher answers all prompts once; training on its answers."""
    return Cost(rollout=full_rollout(s, s.work.prompts, r, s.teacher)) + sft(s, r)


def _synchronous(s: Setting, r: Rates, fraction: float) -> Cost:
    """Steps of which a fraction is on fresh answers of the student; the live teacher scores every step."""
    steps = s.work.prompts * s.epochs / r.step_prompts
    fresh = Cost(rollout=batch_rollout(s, max(1.0, r.step_prompts / s.devices), r), weights=_hand_over(s, r))
    return fresh * (steps * fraction) + supkd(s, r)


def on_policy(s: Setting, r: Rates) -> Cost:
    """Every step on fresh answers."""
    return _synchronous(s, r, 1.0)


def gkd(s: Setting, r: Rates) -> Cost:
    """GKD: half of the steps on fresh answers, the others on the data's."""
    return _synchronous(s, r, GKD_FRACTION)


def distillm2(s: Setting, r: Rates) -> Cost:
    """DistiLLM-2: the teacher answers once, the student at the start of each epoch, with full engines; each step scores
    and trains on both answers."""
    rounds = max(1.0, s.epochs)
    return (
        Cost(rollout=full_rollout(s, s.work.prompts, r, s.teacher))
        + Cost(rollout=full_rollout(s, s.work.prompts, r), weights=_hand_over(s, r)) * rounds
        + supkd(s, r) * 2.0
    )


def _hand_over(s: Setting, r: Rates) -> float:
    return weight_bytes(s.student) / (r.transfer * 1e9) + r.switch_s


LOOPS: dict[str, Callable[[Setting, Rates], Cost]] = {
    "npd": npd,
    "sft": sft,
    "supkd": supkd,
    "seqkd": seqkd,
    "on_policy": on_policy,
    "gkd": gkd,
    "distillm2": distillm2,
}
PAPER_HOURS = {"supkd": 1.17, "seqkd": 2.06, "gkd": 6.54, "distillm": 12.0, "distillm2": 12.0, "npd": 1.48}
"""Table 1 of arXiv:2605.05940: Qwen2.5-Math-7B to 1.5B, 50,000 prompts of MetaMathQA, one epoch, 8 NPUs. For the eye;
nothing is computed from it."""


def levers(s: Setting) -> dict[str, Setting]:
    """NPD under other settings, by what is changed."""
    return {
        "as configured": s,
        "engine batch 32": replace(s, engine_batch=32),
        "engine batch 256": replace(s, engine_batch=256),
        "no refresh": replace(s, refreshes=0),
        "two refreshes": replace(s, refreshes=2),
        "nine refreshes": replace(s, refreshes=9),
        "one epoch": replace(s, epochs=1.0),
        "ten epochs": replace(s, epochs=10.0),
        "no unconditioned pass (select.filter none or fire)": replace(s, unconditioned=False),
        "horizon: half of each answer": replace(s, horizon=0.5 * s.horizon),
    }
