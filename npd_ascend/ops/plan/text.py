"""The estimate as a table for people."""

from __future__ import annotations

from npd_ascend.ops.plan.devices import GOOD, PAPER
from npd_ascend.ops.plan.estimate import Estimate, StageCost

_HEAD = (
    "stage",
    "tokens",
    "FLOPs",
    "disk",
    f"h ({PAPER.name})",
    f"h ({GOOD.name})",
    "h (limit)",
    "GB a device",
    "most that fits",
)
_WIDTHS = (18, 10, 10, 10, 11, 10, 11, 13, 34)


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
        f"  in all: {e.hours(PAPER):.3g} h at the paper's pace, {e.hours(GOOD):.3g} h at a good one"
        + (f", {_time(e.measured)} as calibrated ({_time(e.host)} of it prepare, select, pack)" if e.measured else "")
        + f"; {_disk(e)}"
    )
    lines += ["  hours are estimates for NPUs of the table, not measurements; the stages run one after the other"]
    lines += [f"  > {a}" for a in e.advice]
    return "\n".join(lines + [f"  - {a}" for a in e.assumptions])


def si(x: float) -> str:
    """Three digits and a decimal prefix."""
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= scale:
            return f"{x / scale:.3g} {unit}"
    return f"{x:.3g} "


def _cells(s: StageCost, measured: bool) -> list[str]:
    m = s.memory
    hours = [f"{s.hours(p):.3g}" for p in (PAPER, GOOD)] + [f"{s.limit / s.devices / 3600:.3g}"]
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
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.2g} h"
