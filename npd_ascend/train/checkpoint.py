"""Checkpoints: everything that the next step depends on, in folders that are whole or not there.

``step-NNNNNNNN/`` holds ``weights``, ``m`` and ``v`` (safetensors, float32) and ``state.json`` with a SHA-256 of
each. Batches need no state of their own: they follow from the step number.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from npd_ascend import progress
from npd_ascend.arrays import Array
from npd_ascend.errors import NpdError
from npd_ascend.models import tensorfile
from npd_ascend.store.atomic import atomic_folder, read_sealed, write_sealed
from npd_ascend.store.identity import file_sha256
from npd_ascend.train.adamw import PARTS, AdamW

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class State:
    """How far training is.

    Attributes:
        step: optimiser steps since the start of the run.
        generation, index: generation, and steps done in it.
        progress: epochs done since the start of the run.
        fingerprint: of the generation's job.
        end, snapshot_at: where the generation ends and its snapshot is taken; None: not decided yet.
        reason: why it ends: ``planned``, the sync policy's reason, or ``epochs`` (the run is over).
        ended: nothing is left to do in it.
        snapshot_progress: where the snapshot was taken; None: not yet.
        lag: last measurement: step, forward, reverse.
        train: last row of metrics.
    """

    step: int
    generation: int
    index: int
    progress: float
    fingerprint: str
    end: float | None = None
    snapshot_at: float | None = None
    reason: str = "planned"
    ended: bool = False
    snapshot_progress: float | None = None
    lag: dict[str, Any] | None = None
    train: dict[str, Any] | None = None


class NotFinite(NpdError):
    """A weight or moment, named, is NaN or infinite: nothing to go on from."""


class Checkpoints:
    """The checkpoints of a run, over all its generations.

    Args:
        folder: where they stand.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = Path(folder), keep

    def save(self, state: State, optimizer: AdamW, leads: bool = True) -> None:
        """Writes a checkpoint and removes the oldest ones. One with NaN or infinite weights is not written.

        Files hold the whole model whatever it is cut over, so another layout can go on from them. All processes call,
        ``leads`` writes. Until the generation has ended, the end of the one before stays as well: whatever becomes of
        the newer ones, the generation can then be trained again.

        Raises:
            NotFinite: see there.
        """
        if not leads:
            for part in PARTS if optimizer.spread else ():
                for name in optimizer.names:
                    _value(optimizer, part, name)
            return
        with atomic_folder(self._path(state.step)) as tmp:
            for part in PARTS:
                _write(tmp / f"{part}.safetensors", optimizer, part)
            hashes = {f"{part}.safetensors": file_sha256(tmp / f"{part}.safetensors") for part in PARTS}
            write_sealed(tmp / "state.json", {**asdict(state), "files": hashes})
        for step in self._steps()[self.keep :]:
            if state.ended or not self._ends(step, state.generation - 1):
                shutil.rmtree(self._path(step), ignore_errors=True)

    def valid(self) -> Iterator[State]:
        """States of undamaged checkpoints, newest first; a damaged one is named and passed over."""
        for step in self._steps():
            state = self._state(step)
            if state is not None:
                yield state

    def load(self, state: State, optimizer: AdamW) -> None:
        """Puts weights and moments of a checkpoint in place."""
        for part in PARTS:
            with safe_open(self._path(state.step) / f"{part}.safetensors", framework="np") as file:
                for weight in optimizer.params:
                    optimizer.load(part, weight.name, file.get_tensor(weight.name))

    def drop_after(self, step: int) -> None:
        """Removes what lies beyond ``step``: damaged, or of a configuration that no longer holds."""
        for other in self._steps():
            if other > step:
                shutil.rmtree(self._path(other), ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(p.name) for p in self.folder.iterdir() if p.is_dir())
        return sorted((int(m[1]) for m in found if m), reverse=True)

    def _ends(self, step: int, generation: int) -> bool:
        """Whether a checkpoint marks the end of ``generation``."""
        given = read_sealed(self._path(step) / "state.json") or {}
        return given.get("generation") == generation and given.get("ended") is True

    def _state(self, step: int) -> State | None:
        path = self._path(step)
        try:
            given = read_sealed(path / "state.json")
            if given is None:
                raise ValueError("state.json is missing or damaged")
            for part in PARTS:
                name = f"{part}.safetensors"
                if file_sha256(path / name) != given["files"][name]:
                    raise ValueError(f"{name}: checksum differs")
                with safe_open(path / name, framework="np") as file:
                    file.keys()
            state = State(**{f.name: given[f.name] for f in fields(State)})
            if state.step != step:
                raise ValueError(f"state.json is of step {state.step}")
            return state
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            progress.message(
                f"checkpoint {path.name} is damaged ({type(e).__name__}: {e}); using an older one", level="warning"
            )
            return None


def _write(path: Path, optimizer: AdamW, part: str) -> None:
    """One file of tensors, named as the weights are, one at a time."""
    layout = [(name, "F32", optimizer.shape(name)) for name in optimizer.names]
    tensorfile.write(path, layout, lambda name: _value(optimizer, part, name))


def _value(optimizer: AdamW, part: str, name: str) -> Array:
    array = optimizer.whole(part, name)
    if not np.isfinite(array).all():
        raise NotFinite(f"{'' if part == 'weights' else part + '.'}{name}")
    return array
