"""What the software makes of the hardware: each figure with a slow, a central and a fast value, and its source.

None is fitted to the paper. Shares are of the peaks in ``devices``; operations that recomputation repeats do not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan.devices import Npu
from npd_ascend.ops.plan.flops import decode_flops, kv_bytes, weight_bytes

ENDS = ("fast", "central", "slow")


@dataclass(frozen=True)
class Input:
    """What an estimate rests on.

    Attributes:
        slow, central, fast: values by how they move NPD's and the other loops' time alike; for ``length_spread`` and
            ``step_prompts``, which only synchronous loops feel, ``slow`` is what slows those.
        unit: of the values.
        what: for people.
        source: where the values are from.
        settled_by: part of ``npd doctor CONFIG --node-report`` that measures it; empty: none does.
    """

    slow: float
    central: float
    fast: float
    unit: str
    what: str
    source: str
    settled_by: str = ""


INPUTS = {
    "launch_ms": Input(
        1.18,
        0.55,
        0.50,
        "ms a layer",
        "least time of a decoder layer in a decode step",
        "openPangu-1B, 26 layers, one 910B: 12.9 ms a step at batch 1 and 14.3 to 14.6 at batch 4 to 8 with graphs, "
        "30.6 ms in eager mode",
        "rollout",
    ),
    "bandwidth": Input(
        0.38,
        0.55,
        0.70,
        "of the peak",
        "memory bandwidth reached in decoding",
        "openPangu-7B at batch 1: 24.8 ms a token in one laboratory (38 %), 17.1 ms in another (55 %); 70 % is a goal",
        "rollout",
    ),
    "prefill": Input(
        0.45,
        0.50,
        0.58,
        "of the peak",
        "FLOP/s reached in prefill",
        "openPangu-7B on one 910B: 58 % at 2k, 56 % at 4k, 48 % at 8k, 45 % at 16k tokens; 47 % when 8k prompts are "
        "served",
        "annotate",
    ),
    "train": Input(
        0.38,
        0.47,
        0.55,
        "of the peak",
        "FLOP/s reached in training",
        "MindFormers on 910B: 38-42 % (8B, 8k), 51-55 % (7B, 4k); 45 % backed out of Table 19 of the paper",
        "train",
    ),
    "transfer": Input(
        2.0,
        5.3,
        20.0,
        "GB/s",
        "weights from trainer to engine",
        "HCCL broadcast on one node: 5.3 GB/s; range assumed",
        "hccl",
    ),
    "switch_s": Input(
        5.0, 2.0, 0.5, "s a step", "engine put to sleep and woken, processes in step", "assumed", "rollout"
    ),
    "length_spread": Input(
        0.9,
        0.6,
        0.3,
        "",
        "standard deviation of the answers' length over its mean (log-normal)",
        "assumed; chat answers lie near 0.6",
    ),
    "step_prompts": Input(
        32,
        64,
        256,
        "prompts",
        "prompts of a synchronous step over all devices",
        "DistiLLM-2's code 32, TRL's defaults on 8 devices 64, large runs 256",
    ),
    "padded": Input(
        0.45,
        1.0,
        1.0,
        "",
        "tokens over positions in a synchronous trainer's batches",
        "1: it packs as NPD does; 0.45: batches of 8 padded to their longest, lengths spread by 0.6",
    ),
}


@dataclass(frozen=True)
class Rates:
    """A value for each of ``INPUTS``."""

    launch_ms: float
    bandwidth: float
    prefill: float
    train: float
    transfer: float
    switch_s: float
    length_spread: float
    step_prompts: float
    padded: float

    @classmethod
    def at(cls, end: str) -> Rates:
        """All inputs at ``slow``, ``central`` or ``fast``."""
        return cls(**{name: getattr(i, end) for name, i in INPUTS.items()})


LIMIT = replace(Rates.at("central"), launch_ms=0.0, bandwidth=1.0, prefill=1.0, train=1.0)
"""The hardware's."""


@dataclass(frozen=True)
class DecodeStep:
    """Seconds of one decode step by what could bind it; the longest does.

    Attributes:
        launch: of the layers, one after the other.
        moved: in which weights and KV cache are read.
        computed: in which the operations are done.
    """

    launch: float
    moved: float
    computed: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return max(self.launch, self.moved, self.computed)

    @property
    def bound(self) -> str:
        """What binds it."""
        names = {
            self.computed: "compute",
            self.moved: "memory bandwidth",
            self.launch: "the launch of each decode step",
        }
        return names[self.seconds]


def decode_step(
    spec: ModelSpec, npu: Npu, batch: float, context: float, r: Rates, tensor_parallel: int = 1
) -> DecodeStep:
    """One decode step of ``batch`` sequences after ``context`` tokens, in device seconds: a step that several devices
    share counts for each of them."""
    return DecodeStep(
        r.launch_ms * 1e-3 * spec.num_layers * tensor_parallel,
        (weight_bytes(spec) + batch * context * kv_bytes(spec)) / (npu.bandwidth * r.bandwidth),
        batch * decode_flops(spec, context) / (npu.flops * r.prefill),
    )
