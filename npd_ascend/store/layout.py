"""Where things stand in a run directory, and who may write to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npd_ascend.config.stages import DATA, Data
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import read_object, write_bytes, write_json
from npd_ascend.store.identity import SCHEMA_VERSION

if TYPE_CHECKING:
    from filelock import BaseFileLock


class RunDir:
    """Paths of one run.

    Args:
        root: the run directory; nothing is made until something is written.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.state = self.root / "run.json"
        self.metrics = self.root / "metrics.jsonl"
        self.report = self.root / "report.html"
        self.logs = self.root / "logs"
        self.jobs = self.root / "jobs"
        self.nodes = self.root / "nodes"
        self.prompts = self.root / "prompts" / "train"
        self.eval_prompts = self.root / "prompts" / "eval"
        self.evaluations = self.root / "evaluations"
        self.checkpoints = self.root / "checkpoints"
        self.export = self.root / "export"
        self.export_mark = self.root / "export.json"
        self.compiled = self.root / "compiled"
        self.hashes = self.root / ".hashes.json"
        self._lock: BaseFileLock | None = None

    def data(self, name: str, generation: int = -1, evaluation: str = "") -> Path:
        """Folder of a dataset of ``config.stages.DATA``."""
        return self.root / DATA[name].folder(generation, evaluation)

    def evaluation(self, name: str) -> Path:
        """Result of the evaluation of that name."""
        return self.evaluations / f"{name.replace(' ', '-')}.json"

    def note(self, stage: str, generation: int = -1) -> Path:
        """JSON file of a stage that writes no dataset, unless it has a place of its own."""
        return (self.root if generation < 0 else self.generation(generation).root) / f"{stage}.json"

    def find(self, folder: Path) -> tuple[Data, int] | None:
        """Which dataset is in a folder of this run, and its generation (-1: of none); None: no dataset does."""
        parts = Path(folder).resolve().relative_to(self.root.resolve()).parts
        for data in DATA.values():
            pattern = Path(data.place).parts
            if len(pattern) == len(parts) and all("{" in a or a == b for a, b in zip(pattern, parts, strict=True)):
                return data, int(parts[1]) if parts[0] == "generations" else -1
        return None

    def prompts_of(self, generation: int) -> Path:
        """Prompts that a generation answered: its own slice, or all of them."""
        own = self.generation(generation).prompts
        return own if own.is_dir() else self.prompts

    def generation(self, index: int) -> GenerationDir:
        """Folder of one generation."""
        return GenerationDir(self.root / "generations" / f"{index:03d}")

    def generations(self) -> list[int]:
        """Numbers of the generations that have a folder."""
        folder = self.root / "generations"
        return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []

    def lock(self) -> None:
        """Makes this process the only one that runs here; the system frees it when the process dies.

        Raises:
            UserError: another run is at work here, or the directory cannot be written.
        """
        from filelock import FileLock, Timeout  # a tenth of a dry run, which locks nothing

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or FileLock(str(self.root / ".lock"))
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.root}: another run is at work in this directory; wait for it, or use another run.dir"
            ) from None
        except OSError as e:
            raise UserError(f"{self.root}: cannot write there ({e.strerror}); choose another run.dir") from None

    def unlock(self) -> None:
        """Lets other runs in again."""
        if self._lock is not None:
            self._lock.release()

    def write_config(self, text: str) -> None:
        """Stores the resolved configuration."""
        write_bytes(self.config, text.encode())

    def write_state(self, **fields: Any) -> None:
        """Updates run.json: how far the run is, for people and tools; nothing in the program relies on it."""
        state = self.read_state()
        state.update(fields, schema=SCHEMA_VERSION, pid=os.getpid())
        write_json(self.state, state)

    def read_state(self) -> dict[str, Any]:
        """run.json, or an empty dict."""
        return read_object(self.state)


class GenerationDir:
    """Paths of one generation's datasets."""

    def __init__(self, root: Path):
        self.root = root
        self.rollouts = root / "rollouts"
        self.teacher_scores = root / "scores_teacher"
        self.student_scores = root / "scores_student"
        self.topk = root / "topk"
        self.prompts = root / "prompts"
        self.rewards = root / "rewards"
        self.selection = root / "selection"
        self.packs = root / "packs"
        self.train = root / "train"
        self.next_snapshot = self.train / "next"
        self.snapshot_mark = self.train / "next.json"
        self.done = self.train / "done.json"
