"""The report of a study: tables, plots and verdicts, as one page and as Markdown."""

from __future__ import annotations

from pathlib import Path


def build(root: Path, out: Path | None = None) -> Path:
    """Writes ``index.html``, ``summary.md`` and the figures; see ``render.build``."""
    from npd_ascend.study.report.render import build as render

    return render(root, out)
