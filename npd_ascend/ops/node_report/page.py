"""The report of a node as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from npd_ascend.ops.node_report.parts import PARTS
from npd_ascend.visible import visible

_STYLE = Path(__file__).parents[2] / "report" / "templates" / "report.css"
_HEADS = {
    "value": "difference",
    "limit": "at most",
    "equal_ids": "equal ids",
    "ms": "ms",
    "step_ms": "ms a step",
    "launch_ms": "ms a layer",
    "gb_per_second": "GB/s",
    "tokens_per_second": "tokens/s",
    "seconds": "s",
    "start": "first pass more, s",
    "to_seconds": "reload, s",
    "share": "share of the peak",
    "error": "",
}
"""Columns of a table of lines, by key, in order."""


def page(report: dict[str, Any]) -> str:
    """The page, without references to anything outside of it."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    parts = [
        {"name": name, **PARTS[name].__dict__, **report["parts"].get(name, {"status": "missing"})} for name in PARTS
    ]
    return env.get_template("page.html.j2").render(
        report=report,
        parts=[{**p, "table": table(p.get("lines", []))} for p in parts],
        style=_STYLE.read_text(encoding="utf-8"),
        visible=visible,
    )


def table(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Head and rows of what was measured; columns that no line has are left out."""
    if not lines:
        return []
    keys = [k for k in _HEADS if any(k in line for line in lines)]
    rows = [["", *(_HEADS[k] for k in keys)]]
    return rows + [[str(line["name"]), *(_cell(k, line.get(k)) for k in keys)] for line in lines]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "error":
        return "failed"  # why is above the table
    if key in ("share", "equal_ids"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
