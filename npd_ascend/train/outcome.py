"""What a generation of training leaves behind: the next snapshot, and ``done.json``, written last."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.data.declare import declare
from npd_ascend.errors import UserError
from npd_ascend.models.network import CausalLM
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.weights import save_hf
from npd_ascend.store.atomic import read_sealed, write_json, write_sealed
from npd_ascend.store.identity import file_seals, seals_hold
from npd_ascend.train.checkpoint import State
from npd_ascend.train.job import TrainJob


class Outcome:
    """Files in ``job.out``."""

    def __init__(self, job: TrainJob):
        self.job = job
        self.done, self.next, self._mark = job.out / "done.json", job.out / "next", job.out / "next.json"

    @property
    def finished(self) -> bool:
        """Whether this very generation has been trained to its end."""
        return self._ours(self.done) and self.exported

    @property
    def exported(self) -> bool:
        """Whether ``next`` is the snapshot of this job, undamaged."""
        return self._ours(self._mark) and seals_hold(self.next, (read_sealed(self._mark) or {}).get("files"))

    def clear(self) -> None:
        """Takes away what another configuration left here."""
        if not self._ours(self.done):
            self.done.unlink(missing_ok=True)
        if not self.exported:
            self._mark.unlink(missing_ok=True)
            shutil.rmtree(self.next, ignore_errors=True)

    def export(self, net: CausalLM, state: State, mesh: DeviceMesh) -> None:
        """Writes the snapshot; an existing one stays, since a resumed run makes the same and others may read it.

        Its files say how the student was spoken to and where it ends, which may be otherwise than at its start. All
        ranks that hold the model together call.
        """
        if mesh.agree(np.array([self.exported]))[0]:
            return
        job = self.job
        save_hf(
            net,
            self.next,
            job.student,
            job.device.dtype,
            leads=mesh.leads,
            declare=partial(declare, by=job.declares, like=job.student) if job.declares else None,
        )
        if mesh.leads:
            write_sealed(
                self._mark,
                {
                    "fingerprint": self.job.fingerprint,
                    "step": state.step,
                    "progress": state.progress,
                    "files": file_seals(self.next),
                },
            )

    def finish(self, state: State) -> None:
        """Declares the generation trained; batches on which an earlier try stopped are no longer of interest."""
        for left in self.job.out.glob("not-finite-step-*.json"):
            left.unlink(missing_ok=True)
        write_sealed(
            self.done,
            {
                "fingerprint": self.job.fingerprint,
                "generation": self.job.generation,
                "step": state.step,
                "progress": state.progress,
                "reason": state.reason,
                "snapshot_progress": state.snapshot_progress,
                "metrics": {**(state.train or {}), "lag": state.lag},
            },
        )

    def stop_at_nan(self, what: str, step: int, samples: Array) -> UserError:
        """Keeps the ids of the batch after which something is not finite; returns the error to raise.

        The same command goes on at the last checkpoint, and so comes to the same batch again; other settings
        (``--redo``) train the generation again.
        """
        path = self.job.out / f"not-finite-step-{step:08d}.json"
        ids = [int(s) for s in samples]
        write_json(path, {"what": what, "step": step, "generation": self.job.generation, "sample_ids": ids})
        shown = ", ".join(map(str, ids[:4])) + (", ..." if len(ids) > 4 else "")
        return UserError(
            f"train: the {what} is NaN or infinite at step {step} (samples {shown}; all {len(ids)} in "
            f"{path}); lower train.lr and give --redo, or look at these samples and at the weights in "
            f"{self.job.snapshot}"
        )

    def _ours(self, path: Path) -> bool:
        return (read_sealed(path) or {}).get("fingerprint") == self.job.fingerprint
