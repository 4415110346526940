"""The tables of ``npu-smi info``.

A device takes two lines, ``| NPU Name | Health | Power Temp Hugepages |`` and ``| Chip [Phy-ID] | Bus-Id | AICore
Memory HBM |``; A2 nodes leave the physical number out, which then is the NPU's. A second table lists processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_FIRST = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*(\S+)\s*\|")
_SECOND = re.compile(r"^\|\s*(\d+)(?:\s+(\d+))?\s*\|\s*([0-9A-Fa-f]{4}:\S+)\s*\|(.*)\|\s*$")
_PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*(.*?)\s*\|\s*(\d+)\s*\|")
_OF = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        npu, chip: as the tool numbers them.
        physical: number in ``ASCEND_RT_VISIBLE_DEVICES`` and ``/dev/davinci*``.
        name: e.g. ``910B3``, ``Ascend910``.
        health: ``OK``, or what is wrong.
        used, total: HBM in MB.
    """

    npu: int
    chip: int
    physical: int
    name: str
    health: str
    used: int
    total: int


@dataclass(frozen=True)
class Occupant:
    """A process on a device; ``memory`` in MB."""

    npu: int
    chip: int
    pid: int
    name: str
    memory: int


@dataclass(frozen=True)
class NpuSmi:
    """What the tool said; ``version`` is the driver's."""

    version: str
    chips: list[Chip]
    processes: list[Occupant]


def parse(text: str) -> NpuSmi:
    """Reads the output of ``npu-smi info``; lines that are not understood are passed over."""
    version = _VERSION.search(text)
    chips: list[Chip] = []
    processes: list[Occupant] = []
    first: tuple[int, str, str] | None = None
    in_processes = False
    for line in text.splitlines():
        in_processes = in_processes or "Process id" in line
        if in_processes:
            if m := _PROCESS.match(line):
                processes.append(Occupant(int(m[1]), int(m[2]), int(m[3]), m[4], int(m[5])))
        elif (m := _SECOND.match(line)) and first is not None:
            npu, name, health = first
            usage = _OF.findall(m[4])
            used, total = map(int, usage[-1]) if usage else (0, 0)
            chips.append(Chip(npu, int(m[1]), int(m[2]) if m[2] else npu, name, health, used, total))
            first = None
        elif m := _FIRST.match(line):
            first = int(m[1]), m[2], m[3]
    return NpuSmi(version[2] if version else "", chips, processes)
