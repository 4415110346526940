"""What the NPUs can do, and which share of it the stages reach.

Peaks of the 910B are cube cores x 8,192 FLOP a cycle (16 x 16 x 16 multiply-adds) x clock, as CANN's
``platform_config/*.ini`` of the chip gives them: 24 cores at 1.8 GHz make the 910B2's 353.9 TFLOPS, of which a plain
bf16 matrix product reaches 315 in a public measurement; the 910B3 and B4 have 20 cores at 1.8 and 1.5 GHz; the 910B1
is taken as the B2. The 910C's figures are those of one die (376 TFLOPS, 64 GB, 1.6 TB/s; Zuo et al.,
arXiv:2506.12708): an A3 node shows 16 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from npd_ascend.errors import UserError


@dataclass(frozen=True)
class Npu:
    """One device as the system counts it.

    Attributes:
        name: as ``npu-smi info`` shows it, or the die of a 910C.
        flops: dense bf16 peak, FLOP/s.
        memory: HBM, bytes.
        bandwidth: HBM, bytes/s.
        node: devices of the usual node.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    node: int


@dataclass(frozen=True)
class Pace:
    """Shares of the hardware's limit that the stages reach.

    Attributes:
        name: for the table.
        decode: share of the memory bandwidth (or of the peak, where that binds) while answers are generated.
        prefill: share of the peak in the annotating forward passes.
        train: share of the peak in training.
    """

    name: str
    decode: float
    prefill: float
    train: float


_GIB = 2**30
NPUS = {
    n.name: n
    for n in (
        Npu("910B1", 353.9e12, 64 * _GIB, 1.6e12, 8),
        Npu("910B2", 353.9e12, 64 * _GIB, 1.6e12, 8),
        Npu("910B3", 294.9e12, 64 * _GIB, 1.6e12, 8),
        Npu("910B4", 245.8e12, 32 * _GIB, 0.8e12, 8),
        Npu("910C", 376e12, 64 * _GIB, 1.6e12, 16),
    )
}
DEFAULT_NPU = "910B2"

PAPER = Pace("paper", decode=0.021, prefill=0.39, train=0.47)
"""Backed out of Table 19 of arXiv:2605.05940 (rollout 300 h, annotation and Δ-IFD 23 h, training 42 h on 8 NPUs) with
1.2M prompts of 300 tokens, answers of 2,000, 128 sequences an engine, 910B2: the pace of a run that has been done."""
GOOD = Pace("good", decode=0.4, prefill=0.5, train=0.6)
"""What well-tuned software reaches elsewhere: 69 % in training of a 7B model on 8 NPUs (MindSpeed-LLM), half the peak
in packed prefill, 40 % of the bandwidth in decoding with full batches. A goal, not a promise."""


def find_npu(name: str) -> Npu:
    """The table's entry for a name such as ``910B3`` or ``Ascend910B3``; an A3's bare ``Ascend910`` is a 910C die.

    Raises:
        UserError: not in the table.
    """
    short = name.removeprefix("Ascend")
    short = "910C" if short in ("910", "910_93", "910_9391", "910_9392") else short
    for key in (short, short.split("-")[0]):
        if key in NPUS:
            return NPUS[key]
    raise UserError(f"device {name}: not in the table; known are {', '.join(NPUS)}")
