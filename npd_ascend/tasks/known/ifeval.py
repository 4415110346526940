"""IFEval: prompts with instructions that can be verified (arXiv:2311.07911)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from npd_ascend.tasks.registry import task


@task("ifeval", "prompt", "instruction_id_list", "kwargs", reward="ifeval")
def ifeval(row: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt; its instructions and what they say."""
    ids, kwargs = list(row["instruction_id_list"]), [dict(k) for k in row["kwargs"]]
    return str(row["prompt"]), json.dumps({"instruction_id_list": ids, "kwargs": kwargs})
