"""HumanEval: functions to complete, with tests (arXiv:2107.03374)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from npd_ascend.tasks.registry import task


@task("humaneval", "prompt", "test", "entry_point", reward="code")
def humaneval(row: Mapping[str, Any]) -> tuple[str, str]:
    """The head of the function; its tests, called as the data set's own harness does."""
    name = row["entry_point"]
    tests = f"{row['test']}\ncheck({name})"
    answer = {"prompt": row["prompt"], "entry_point": name, "tests": tests}
    return f"Complete this Python function. Answer with the whole function.\n\n{row['prompt']}", json.dumps(answer)
