"""MBPP: short functions after a description (Austin et al., arXiv:2108.07732); the sanitized set."""

from pathlib import Path
from typing import Any

from npd_ascend.bench.registry import Answered, Source, register
from npd_ascend.bench.rows import Row, whole_json
from npd_ascend.errors import UserError


@register("mbpp")
class MBPP(Answered):
    """pass@1 of a greedy answer on the 257 tasks 11 to 510 of the sanitized set, which the paper's figures fit."""

    title = "MBPP"
    metric = "pass@1"
    sources = (Source("mbpp/sanitized-mbpp.json", "github.com/google-research/google-research (mbpp)", "CC BY 4.0"),)
    count = 257
    proven = False
    task = "mbpp"

    def rows(self, folder: Path) -> list[Row]:
        (source,) = self.sources
        path = source.find(folder, self.name)
        found: Any = whole_json(path)
        if not isinstance(found, list) or not all(isinstance(r, dict) and "task_id" in r for r in found):
            raise UserError(f"{path}: expected a list of objects with task_id")
        return [Row(f"{path}: task {r['task_id']}", r) for r in found if 11 <= int(r["task_id"]) <= 510]
