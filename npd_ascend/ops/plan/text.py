"""The estimate as a table for people."""

from __future__ import annotations

from npd_ascend.ops.plan.devices import CELLS
from npd_ascend.ops.plan.estimate import Estimate, StageCost
from npd_ascend.ops.plan.paces import INPUTS

_HEAD = ("stage", "tokens", "FLOPs", "disk", "hours", "fast to slow", "limit", "GB a device", "most that fits")
_CELLS = {"flops": "peak in bf16, TFLOPS", "memory": "memory, GB", "bandwidth": "memory bandwidth, TB/s"}
_WIDTHS = (18, 10, 10, 10, 8, 15, 8, 13, 32)


def render(e: Estimate) -> str:
    """Table, totals, assumptions and advice."""
    return _here(e) if e.cpu else _npus(e)


def _here(e: Estimate) -> str:
    """Of a plan on a CPU: seconds, or what would say them."""
    known = e.measured is not None
    head, widths = ["stage", "tokens", "FLOPs", "disk"], [18, 10, 10, 10]
    if known:
        head, widths = [*head, "time", "of it start-up"], [*widths, 12, 16]
    lines = [_line(head, widths)]
    for s in e.stages:
        seconds = [_time(s.measured), _time(s.start)] if known and s.measured is not None else []
        lines.append(_line([s.stage, si(s.tokens), si(s.flops), si(s.disk) + "B", *seconds], widths))
    total = (
        f"{_time(e.measured)} on {e.cpu}, {_time(e.host)} of it prepare, select, pack; "
        if e.measured is not None
        else "npd plan CONFIG measures this machine for about five seconds and says how long; "
    )
    lines.append(f"  in all: {total}{_disk(e)}")
    if known:
        lines.append("  an estimate, right within a factor of two or so; --calibrate with a finished run is better")
    return "\n".join([*lines, *(f"  > {a}" for a in e.advice), *(f"  - {a}" for a in e.assumptions)])


def _disk(e: Estimate) -> str:
    short = "  WARNING: not enough room" if e.disk > e.free_disk else ""
    return f"disk {si(e.disk)}B, free {si(e.free_disk)}B{short}"


def _npus(e: Estimate) -> str:
    measured = any(s.measured is not None for s in e.stages)
    head, widths = list(_HEAD), list(_WIDTHS)
    if measured:
        head.insert(4, "calibrated")
        widths.insert(4, 12)
    lines = [_line(head, widths), *(_line(_cells(s, measured), widths) for s in e.stages)]
    lines.append(
        f"  in all: {e.hours():.3g} h ({e.hours('fast'):.3g} to {e.hours('slow'):.3g})"
        + (f", {_time(e.measured)} as calibrated ({_time(e.host)} of it prepare, select, pack)" if e.measured else "")
        + f"; {_disk(e)}"
    )
    lines += ["  hours are estimates, not measurements on NPUs; the stages run one after the other"]
    lines += [f"  > {a}" for a in e.advice]
    return "\n".join([*lines, *(f"  - {a}" for a in e.assumptions), "", *_rests_on(e)])


def _rests_on(e: Estimate) -> list[str]:
    """The figures behind the hours, each with its range, its source and the part of a node report that measures it."""
    rows = [["what the hours rest on", "central", "fast to slow", "measured by", "source"]]
    for what, cell in CELLS[e.npu.name].items():
        spread = f"{cell.high:g} to {cell.low:g}" if cell.low != cell.high else "-"
        rows.append([f"{e.npu.name}: {_CELLS[what]}", f"{cell.central:g}", spread, "-", cell.source])
    for i in (INPUTS[name] for name in dict.fromkeys(name for s in e.stages for name in s.rests_on)):
        scale, unit = (100, "% of the peak") if i.unit == "of the peak" else (1, i.unit)
        fast, central, slow = (f"{x * scale:g}" for x in (i.fast, i.central, i.slow))
        rows.append([f"{i.what}, {unit}", central, f"{fast} to {slow}", i.settled_by or "-", i.source])
    return [*aligned(rows), "  measured by: a part of npd doctor CONFIG --node-report DIR; --calibrate DIR reads it"]


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def si(x: float) -> str:
    """Three digits and a decimal prefix."""
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= scale:
            return f"{x / scale:.3g} {unit}"
    return f"{x:.3g} "


def _cells(s: StageCost, measured: bool) -> list[str]:
    m = s.memory
    hours = [f"{s.hours():.3g}", f"{s.hours('fast'):.3g} to {s.hours('slow'):.3g}", f"{s.hours('limit'):.3g}"]
    if measured:
        hours.insert(0, _time(s.measured) if s.measured is not None else "-")
    fits = (f"{m.needed / 1e9:.0f} of {m.budget / 1e9:.0f}", f"{m.knob} {m.largest}") if m else ("-", "-")
    return [s.stage, si(s.tokens), si(s.flops), si(s.disk) + "B", *hours, *fits]


def _line(cells: list[str], widths: list[int]) -> str:
    first, *rest = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "  " + first + "".join(rest)


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.2g} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
