"""What arms of a study share: datasets by fingerprint, with the time that making them took."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from npd_ascend.pipeline.steps import Step
from npd_ascend.store.atomic import atomic_folder, read_sealed, write_sealed
from npd_ascend.store.identity import digest

_SHARED = ("prepare", "rollout", "annotate_teacher", "annotate_student")


class Shelf:
    """A folder of finished datasets, hard-linked into the arms that need them.

    Two processes that make the same one at the same time both do the work; one result stays.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root

    def take(self, step: Step) -> float | None:
        """Puts a step's outputs in place; the seconds that they took, or None when they are not here."""
        if step.stage not in _SHARED:
            return None
        place = self._place(step)
        seconds = (read_sealed(place / "made.json") or {}).get("seconds")
        if seconds is None:
            return None
        for dataset in step.outputs:
            shutil.rmtree(dataset.folder, ignore_errors=True)
            shutil.copytree(place / dataset.kind, dataset.folder, copy_function=os.link)
        return float(seconds)

    def put(self, step: Step, seconds: float) -> None:
        """Keeps a step's outputs for other arms."""
        if step.stage not in _SHARED or (self._place(step) / "made.json").is_file():
            return
        with atomic_folder(self._place(step)) as folder:
            for dataset in step.outputs:
                shutil.copytree(dataset.folder, folder / dataset.kind, copy_function=os.link)
            write_sealed(folder / "made.json", {"seconds": seconds})

    def answers(self, key: Sequence[object], make: Callable[[], tuple[list[np.ndarray], float]]
                ) -> tuple[list[np.ndarray], float]:
        """A model's answers and the seconds they took, made when they are not here.

        Args:
            key: what they depend on.
            make: makes them.
        """
        path = self.root / f"answers-{digest([str(k) for k in key])}.json"
        found = read_sealed(path)
        if found is None:
            answers, seconds = make()
            found = {"ids": json.dumps([a.tolist() for a in answers]), "seconds": seconds}
            write_sealed(path, found)
        return [np.array(a, np.int32) for a in json.loads(found["ids"])], float(found["seconds"])

    def _place(self, step: Step) -> Path:
        return self.root / f"{step.stage}-{digest([d.fingerprint for d in step.outputs])}"
