"""What other programs did with the same models and prompts, from ``peers.jsonl`` beside the results.

Its lines are what ``benchmarks/trl_on_policy.py`` prints.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npd_ascend.study.report.sections import Section, Table, with_interval
from npd_ascend.study.statistics import over_seeds

FILE = "peers.jsonl"


def section(root: Path) -> Section | None:
    """A table of the peers; None without the file or with nothing readable in it."""
    try:
        lines = (Path(root) / FILE).read_text().splitlines()
    except OSError:
        return None
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        try:
            row = json.loads(line)
            found[(row["trainer"], row["lmbda"], row["beta"], row["temperature"], row["prompts"])].append(row)
        except (ValueError, KeyError, TypeError):
            continue
    if not found:
        return None

    def cell(rows: list[dict[str, Any]], key: str, write: Callable[[float], str]) -> str:
        return with_interval(over_seeds([r[key] for r in rows]), write)

    table = Table(
        [
            "trainer",
            "share of own answers",
            "β",
            "temperature of answers",
            "seeds",
            "prompts",
            "seconds",
            "seconds a prompt",
            "accuracy before, %",
            "accuracy, %",
        ],
        [
            [
                f"TRL {name}",
                f"{share:g}",
                f"{beta:g}",
                f"{t:g}",
                str(len(rows)),
                f"{prompts:,}",
                cell(rows, "seconds", lambda x: f"{x:.1f}"),
                cell(rows, "seconds_per_prompt", lambda x: f"{x:.4f}"),
                f"{100 * rows[0]['accuracy_before']:.1f}",
                cell(rows, "accuracy", lambda x: f"{100 * x:.1f}"),
            ]
            for (name, share, beta, t, prompts), rows in found.items()
        ],
        "Same student, teacher, optimiser, rates, prompts a step and length limit as the study's synchronous arms; "
        "torch, answers by transformers' generate; loading and evaluation left out. β: 0 is forward KL, 0.5 JSD.",
    )
    versions = sorted(
        {
            f"TRL {r['trl']}, transformers {r['transformers']}, torch {r['torch']}"
            for rows in found.values()
            for r in rows
        }
    )
    return Section("peers", "How does TRL do on the same models?", "", "; ".join(versions) + ".", tables=[table])
