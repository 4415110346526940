"""What arms of a study share: datasets by fingerprint, with the time that making them took."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.pipeline.steps import Step
from npd_ascend.store.atomic import atomic_folder, read_sealed, write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import digest, model_fingerprint


class DatasetCache:
    """A folder of finished datasets, hard-linked into the arms that need them.

    Two processes that make the same one at the same time both do the work; one result stays.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root

    def take(self, step: Step) -> float | None:
        """Puts outputs of a step's forward pass in place; the seconds that it took, or None when some are not here.

        Outputs lie here one by one: arms that store different quantities of one pass share those that they both have.
        """
        if not step.stage.shared:
            return None
        found = [self._take(dataset) for dataset in step.outputs]
        return None if None in found else max((s for s in found if s is not None), default=None)

    def _take(self, dataset: Dataset) -> float | None:
        place = self._place(dataset)
        seconds = (read_sealed(place / "made.json") or {}).get("seconds")
        if seconds is None:
            return None
        if not dataset.complete:
            shutil.rmtree(dataset.folder, ignore_errors=True)
            shutil.copytree(place / "data", dataset.folder, copy_function=os.link)
        return float(seconds)

    def put(self, step: Step, seconds: float) -> None:
        """Keeps what a step's forward pass has made, for other arms."""
        for dataset in step.outputs if step.stage.shared else []:
            if not (self._place(dataset) / "made.json").is_file():
                with atomic_folder(self._place(dataset)) as folder:
                    shutil.copytree(dataset.folder, folder / "data", copy_function=os.link)
                    write_sealed(folder / "made.json", {"seconds": seconds})

    def answers(
        self, key: Sequence[object], make: Callable[[], tuple[list[Array], float]]
    ) -> tuple[list[Array], float]:
        """A model's answers and the seconds they took, made when they are not here.

        Args:
            key: what they depend on.
            make: makes them.
        """

        def stored() -> dict[str, Any]:
            answers, seconds = make()
            return {"ids": json.dumps([a.tolist() for a in answers]), "seconds": seconds}

        found = self.values("answers", key, stored)
        return [np.array(a, np.int32) for a in json.loads(found["ids"])], float(found["seconds"])

    def values(self, kind: str, key: Sequence[object], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Values that JSON can hold, made when they are not here.

        Args:
            kind: what they are.
            key: what they depend on.
            make: makes them.
        """
        path = self.root / f"{kind}-{digest([str(k) for k in key])}.json"
        found = read_sealed(path)
        if found is None:
            found = make()
            write_sealed(path, found)
        return found

    def model(self, folder: Path) -> str:
        """Identity of a checkpoint; hashes of its files are remembered, so that one is read once a study."""
        return model_fingerprint(folder, self.root / ".hashes.json")

    def _place(self, dataset: Dataset) -> Path:
        return self.root / f"{dataset.kind}-{dataset.fingerprint}"
