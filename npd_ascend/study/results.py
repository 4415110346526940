"""results.jsonl: one flat JSON object a fact, written once an arm is finished.

While an arm runs its rows stand in a file of its own, so a kill costs that arm and nothing else.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from npd_ascend.config.study import Arm
from npd_ascend.store.atomic import atomic_folder
from npd_ascend.store.identity import digest
from npd_ascend.store.metrics import MetricsWriter, read_metrics
from npd_ascend.study.method import live_method

TOTAL = "total"
"""``stage`` of the time row that ends an arm."""


def identity(arm: Arm) -> str:
    """What an arm's results depend on, as far as settings say; places of files do not matter."""
    config = arm.config.model_dump(mode="json", exclude={"run": {"dir"}})
    return digest(
        [
            arm.key,
            arm.method,
            config,
            _live(arm),
            arm.evaluations,
            arm.exposure,
            arm.timed,
            arm.subset,
            arm.exposure_prompts,
            *_makers(arm),
        ]
    )


def content(arm: Arm) -> str:
    """What an arm does, whatever it is called: arms of one content are one run. What is measured on the way is left
    out: a run that measures more serves arms that ask for less."""
    config = arm.config.model_dump(mode="json", exclude={"run": {"dir"}})
    return digest([arm.task, arm.method, config, _live(arm), arm.subset, *_makers(arm)])


def _live(arm: Arm) -> dict[str, Any] | None:
    """Settings of its synchronous loop, if it has one."""
    return arm.live.model_dump(mode="json") if live_method(arm.method) else None


def _makers(arm: Arm) -> list[tuple[str, str]]:
    """What its models are made by."""
    return [(role, content(maker)) for role, maker in arm.makers.items()]


class Recorder:
    """Writes the rows of one arm.

    Args:
        path: file of its own; an earlier try's is removed.
        arm: the arm.
    """

    def __init__(self, path: Path, arm: Arm):
        path.unlink(missing_ok=True)
        self._writer = MetricsWriter(path)
        self._arm = arm

    def log(self, kind: str, step: int, progress: float, seconds: float, prompts: int, **values: Any) -> None:
        """Appends a row; ``values`` may overwrite nothing of what every row has."""
        a = self._arm
        self._writer.log(
            kind,
            task=a.task,
            group=a.group,
            arm=a.name,
            seed=a.seed,
            step=step,
            progress=round(progress, 6),
            seconds=round(seconds, 3),
            prompts=prompts,
            **values,
        )


class Results:
    """The results of a study.

    Args:
        root: study directory.
    """

    def __init__(self, root: Path):
        self.path, self.arms = root / "results.jsonl", root / "arms"

    def own(self, arm: Arm) -> Path:
        """File of an arm at work."""
        return self.arms / arm.task / arm.group / arm.name / f"{arm.seed}.jsonl"

    def student(self, arm: Arm) -> Path:
        """Folder of a finished arm's student, where another arm begins with it."""
        return self.path.parent / "cache" / f"student-{content(arm)}"

    def keep(self, arm: Arm, student: Path) -> None:
        """Copies a finished arm's student to where other arms look for it."""
        with atomic_folder(self.student(arm)) as folder:
            shutil.copytree(student, folder, dirs_exist_ok=True)

    def whole(self, arm: Arm) -> bool:
        """Whether an arm has no student that others begin with, or it is there."""
        return not arm.kept or self.student(arm).is_dir()

    def finished(self) -> dict[str, str]:
        """Identity of each finished arm by key."""
        return {key_of(r): r["identity"] for r in self._ends(read_metrics(self.path))}

    def seconds(self) -> dict[str, float]:
        """Wall seconds that finished arms took, everything included, by key."""
        return {key_of(r): float(r["wall"]) for r in self._ends(read_metrics(self.path)) if "shared" not in r}

    def take(self, arm: Arm) -> None:
        """Moves the rows of an arm that has just finished into the results."""
        writer = MetricsWriter(self.path)
        for row in read_metrics(self.own(arm)):
            writer.log(row.pop("kind"), **row)
        self.own(arm).unlink()

    def share(self, done: Arm, twin: Arm) -> None:
        """Enters the rows of a finished arm also under the name of one that does the same."""
        writer = MetricsWriter(self.path)
        for row in read_metrics(self.path):
            if key_of(row) == done.key and (row["kind"] != "exposure" or twin.exposure):
                row |= {"group": twin.group, "arm": twin.name}
                if row.get("stage") == TOTAL:
                    row |= {"identity": identity(twin), "wall": 0.0, "shared": done.key, "timed": twin.timed}
                writer.log(row.pop("kind"), **row)

    def drop(self, keep: dict[str, str]) -> None:
        """Removes rows of arms that stand here half-taken, or made with other settings than ``keep`` says."""
        good = {k for k, v in self.finished().items() if keep.get(k, v) == v}
        MetricsWriter(self.path).drop(lambda r: key_of(r) not in good)

    @staticmethod
    def _ends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [r for r in rows if r["kind"] == "time" and r.get("stage") == TOTAL and "identity" in r]


def key_of(row: dict[str, Any]) -> str:
    """Key of the arm that a row belongs to."""
    return f"{row.get('task')}/{row.get('group')}/{row.get('arm')}/{row.get('seed')}"
