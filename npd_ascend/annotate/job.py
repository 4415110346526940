"""What an annotation is given: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from npd_ascend.config.job import Device, SharedJob, Target
from npd_ascend.config.marks import CHECKPOINT, OUTPUT, SPEED, Holds
from npd_ascend.config.schema import AnnotateConfig
from npd_ascend.store.dataset import Dataset
from npd_ascend.workers.shares import Shares


class AnnotateJob(SharedJob):
    """``prompts`` + ``rollouts`` -> stored quantities of one model by packed prefill.

    What is None is not asked for, and costs nothing. Its fingerprint is made of those of its targets.
    """

    scores: Annotated[Target | None, OUTPUT] = None
    """NLL and entropy of each response after its prompt."""
    topk: Annotated[Target | None, OUTPUT] = None
    """The best ids of each response token with their log-probs, from the same pass as ``scores``."""
    unconditioned: Annotated[Target | None, OUTPUT] = None
    """NLL and entropy of each response without its prompt."""
    prompts: Annotated[Path, Holds("prompts")]
    rollouts: Annotated[Path, Holds("rollouts")]
    model: Annotated[Path, CHECKPOINT]
    vocabulary: int
    """Token ids below this count; logits from here on are padding."""
    role: Literal["teacher", "student"]
    settings: AnnotateConfig
    device: Device = Device()
    compiled: Path | None = None
    """Folder in which compiled graphs outlive the process; None: they do not."""
    longest: Annotated[int | None, SPEED] = None
    """Tokens that a prompt and its answer may have in any generation; None: not known beforehand."""

    @property
    def targets(self) -> dict[str, Target]:
        """What is asked for, by field."""
        return {what: t for what in ("scores", "topk", "unconditioned") if (t := getattr(self, what)) is not None}

    def outputs(self) -> dict[str, Dataset]:
        """What is asked for, as datasets."""
        return {
            what: Dataset(t.folder, "topk" if what == "topk" else "scores", t.fingerprint, self.own)
            for what, t in self.targets.items()
        }

    def shares(self) -> Shares:
        """Its shards, which several workers may share.

        Raises:
            UserError: the rollouts are not there.
        """
        rollouts, out = Dataset.open(self.rollouts, "rollouts"), self.outputs()
        return Shares(
            f"annotate {self.role}",
            [r["rows"] for r in rollouts.manifest["shards"]],
            next(iter(out.values())).folder,
            lambda: {i for d in out.values() for i in d.missing(rollouts.shards)},
            lambda: all(d.complete for d in out.values()),
        )
