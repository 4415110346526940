"""What the NPUs can do, each figure with a low, a central and a high value, and its source.

Peaks of the 910B are cube cores x 8,192 FLOP a cycle (16 x 16 x 16 multiply-adds) x clock. Cores (``ai_core_cnt``) and
clock (``cube_freq``) are those of CANN's ``platform_config/*.ini`` and of npu-smi. Two figures are in circulation for
the 910B3: 294.9 TFLOPS is what its 20 cores do at the 1,800 MHz that npu-smi shows, and is taken; 313, of public lists,
would need 1,910 MHz, which no source shows, and is the high value. The same lists give the B4 280, where 20 cores at
1,500 MHz make 245.8. The shares of ``paces`` are of the 910B2's 353.9, of which plain bf16 matrix products reach 315 to
328 in public measurements.

The 910C's figures are those of one die: an A3 node shows 16 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from npd_ascend.errors import UserError

_GIB = 2**30
End = Literal["low", "central", "high"]


@dataclass(frozen=True)
class Cell:
    """A figure of a device, in units of its own.

    Attributes:
        low, central, high: the range.
        source: where they are from.
    """

    low: float
    central: float
    high: float
    source: str


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


_B2 = "24 cube cores x 8,192 x 1.8 GHz (platform_config)"
_64 = Cell(61.0, 64.0, 64.0, "npu-smi: 65,536 MB; torch_npu shows 62,432 MB of them")
_1600 = "vendor's lists; openPangu-7B reads 0.88 of it in decoding"
_A3 = "Zuo et al., arXiv:2506.12708, half of a package"
CELLS: dict[str, dict[str, Cell]] = {
    "910B1": {
        "flops": Cell(353.9, 353.9, 353.9, f"taken as the 910B2: {_B2}; nothing of its own was found"),
        "memory": _64,
        "bandwidth": Cell(1.6, 1.6, 1.6, _1600),
    },
    "910B2": {"flops": Cell(353.9, 353.9, 353.9, _B2), "memory": _64, "bandwidth": Cell(1.6, 1.6, 1.6, _1600)},
    "910B3": {
        "flops": Cell(294.9, 294.9, 313, "20 cube cores x 8,192 x 1.8 GHz (platform_config, npu-smi); lists say 313"),
        "memory": _64,
        "bandwidth": Cell(1.6, 1.6, 1.6, _1600),
    },
    "910B4": {
        "flops": Cell(245.8, 245.8, 280, "20 cube cores x 8,192 x 1.5 GHz (platform_config); lists say 280"),
        "memory": Cell(30.0, 32.0, 32.0, "npu-smi: 32,768 MB; what is left to programs taken as on 64 GB"),
        "bandwidth": Cell(0.8, 0.8, 0.8, "vendor's lists: half of the stacks of the others"),
    },
    "910C": {
        "flops": Cell(353.9, 376, 376, f"{_A3}: 752 TFLOPS; low: as a 910B2"),
        "memory": Cell(61.0, 64.0, 64.0, f"{_A3}: 128 GB"),
        "bandwidth": Cell(1.6, 1.6, 1.6, f"{_A3}: 3.2 TB/s"),
    },
}
"""By device: TFLOPS in bf16, GiB, TB/s."""
_NODE = {"910C": 16}
DEFAULT_NPU = "910B2"


def _npu(name: str, end: End) -> Npu:
    flops, memory, bandwidth = (getattr(CELLS[name][cell], end) for cell in ("flops", "memory", "bandwidth"))
    return Npu(name, flops * 1e12, memory * _GIB, bandwidth * 1e12, _NODE.get(name, 8))


NPUS = {name: _npu(name, "central") for name in CELLS}


def find_npu(name: str, end: End = "central") -> Npu:
    """The table's entry for a name such as ``910B3`` or ``Ascend910B3``; an A3's bare ``Ascend910`` is a 910C die.

    Raises:
        UserError: not in the table.
    """
    short = name.removeprefix("Ascend")
    short = "910C" if short in ("910", "910_93", "910_9391", "910_9392") else short
    for key in (short, short.split("-")[0]):
        if key in NPUS:
            return _npu(key, end)
    raise UserError(f"device {name}: not in the table; known are {', '.join(NPUS)}")
