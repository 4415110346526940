"""MBPP: functions to write after a description, with assertions (arXiv:2108.07732)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from npd_ascend.tasks.registry import task


@task("mbpp", "test_list", reward="code")
def mbpp(row: Mapping[str, Any]) -> tuple[str, str]:
    """The description (``prompt``, of older forms ``text``) with the assertions, which name the function."""
    before = "\n".join([*(row.get("test_imports") or ()), str(row.get("test_setup_code") or "")])
    tests = "\n".join(row["test_list"])
    asked = row.get("prompt") or row["text"]
    return f"{asked}\nYour code should pass these tests:\n\n{tests}", json.dumps({"before": before, "tests": tests})
