"""What the results of a study were made from: checkpoints and files of prompts, by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npd_ascend.config.study import Arm
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import read_sealed, write_sealed
from npd_ascend.store.identity import file_sha256
from npd_ascend.study.dataset_cache import DatasetCache

_INPUTS = "inputs.json"


def check_inputs(root: Path, arms: Sequence[Arm], begun: bool) -> None:
    """Refuses checkpoints and prompts that are not those of the results that stand there, and notes new ones.

    Rows of an arm say which settings made them, which are the same when a model is made anew at the same place.

    Args:
        root: study directory.
        arms: those that are asked for; they share few models.
        begun: whether there are results.

    Raises:
        UserError: a checkpoint or a file has changed, or cannot be read.
    """
    known: dict[str, str] = (read_sealed(root / _INPUTS) or {}) if begun else {}
    models = {m for a in arms for m in (a.config.models.teacher, a.config.models.student)}
    prompts = {p for a in arms for p in (*a.config.data.prompts, *a.config.evaluate.prompts) if p.is_file()}
    cache = DatasetCache(root / "cache")
    now = {str(m): cache.model(m) for m in models} | {str(p): file_sha256(p) for p in prompts}
    for place, content in sorted(now.items()):
        if known.get(place, content) != content:
            raise UserError(
                f"{place} has changed since results in {root} were made with it; use another study.dir, "
                f"or remove {root} to begin anew"
            )
    if known != known | now:
        write_sealed(root / _INPUTS, known | now)
