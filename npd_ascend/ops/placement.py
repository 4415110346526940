"""Which devices of a node serve which stage.

``shared``: every stage has all devices, one stage after the other. A split gives some to rollouts, evaluation and
annotation and the others to training, so that both sides work at once when ``sync.lead`` lets them. On CPU, cores
stand in for devices: processes of a split are tied to theirs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from npd_ascend.config.schema import Config, Split
from npd_ascend.config.stages import Side
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import visible_npus

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Placement:
    """Devices of each side of one node.

    Attributes:
        target: ``cpu`` or ``ascend``.
        rollout, train: numbers of NPUs, or of cores on CPU; the same for both sides when shared.
        split: the sides have devices of their own.
    """

    target: str
    rollout: tuple[int, ...]
    train: tuple[int, ...]
    split: bool = False

    @classmethod
    def of(cls, config: Config, target: str, present: Sequence[int] | None = None) -> Placement:
        """Places a configuration on this node.

        Args:
            config: its ``device`` section says how.
            target: ``cpu`` or ``ascend``.
            present: device numbers; None: what is visible here.

        Raises:
            UserError: more devices are asked for than there are, or some would stay idle.
        """
        if present is None:
            present = visible_npus() if target == "ascend" else sorted(os.sched_getaffinity(0))
        what = "NPUs" if target == "ascend" else "CPU cores"
        count, placement = config.device.count, config.device.placement
        if count and count > len(present) and (target == "ascend" or isinstance(placement, Split)):
            raise UserError(f"device.count is {count} but {len(present)} {what} are visible")
        mine = tuple(present[: count or len(present)])
        if not isinstance(placement, Split):
            return cls(target, mine, mine)
        if placement.rollout + placement.train != len(mine):
            raise UserError(
                f"device.placement is rollout: {placement.rollout}, train: {placement.train}, together "
                f"{placement.rollout + placement.train}, but the node has {len(mine)} {what}; change it "
                "or device.count"
            )
        return cls(target, mine[: placement.rollout], mine[placement.rollout :], True)

    def check(self, config: Config, nodes: int = 1) -> None:
        """Whether the workers and ranks of all stages find their devices.

        Raises:
            UserError: they do not; says which setting to change.
        """
        annotate, train = config.annotate, config.train
        wanted: tuple[tuple[str, int, int, str, tuple[int, ...]], ...] = (
            ("rollout.workers", config.rollout.workers, config.rollout.tensor_parallel, "rollout", self.rollout),
            ("annotate.workers", annotate.workers, annotate.tensor_parallel, "annotate", self.rollout),
            ("train.data_parallel", train.data_parallel, train.ranks // train.data_parallel, "train", self.train),
        )
        for name, copies, width, section, devices in wanted:
            if nodes > 1 and copies > 1 and copies % nodes and section != "rollout":
                raise UserError(
                    f"{name} is {copies}, which {nodes} nodes cannot share evenly; make it a multiple of {nodes}"
                )
            if self.target != "ascend" and not self.split:
                continue  # processes share the cores
            where = f"{len(devices)} devices" + (f" of device.placement.{_side(section)}" if self.split else "")
            if section != "train" and len(devices) % width:
                raise UserError(f"{section}.tensor_parallel {width} does not divide the {where}")
            spread = nodes if copies > 1 else 1
            if copies * width > len(devices) * spread:
                cuts = [("tensor_parallel", width)]
                if section == "train":
                    cuts = [(cut, getattr(train, cut)) for cut in ("context_parallel", "tensor_parallel")]
                raise UserError(
                    f"{name} {copies}"
                    + "".join(f" x {cut} {n}" for cut, n in cuts if n > 1)
                    + f" needs {copies * width} devices but there are {where}"
                    + (f" on each of {nodes} nodes" if nodes > 1 else "")
                    + "; lower it"
                )
        if config.sync.lead and not self.split and self.target == "ascend":
            raise UserError(
                "sync.lead lets rollouts run beside training, but with device.placement: shared both want "
                "the same NPUs; give each side its own, e.g. device.placement: {rollout: 6, train: 2}, or "
                "set sync.lead: 0"
            )

    def collide(self, one: Side | None, other: Side | None) -> bool:
        """Whether stages of these sides need the same devices; on CPU they share the cores."""
        if self.target != "ascend" or one is None or other is None:
            return False
        return bool(set(getattr(self, one)) & set(getattr(self, other)))

    def environment(self, side: Side, first: int = 0, count: int | None = None) -> dict[str, str]:
        """Variables for a process that uses ``count`` devices of a side, from its ``first``-th on; None: all.

        On CPU a process in a shared placement may use all cores, and is given the number of threads of its share.
        """
        devices = getattr(self, side)
        mine = devices[first : first + count] if count is not None else devices[first:]
        if self.target == "ascend":
            return {VISIBLE: ",".join(map(str, mine))}
        return {"OMP_NUM_THREADS": str(max(1, len(mine)))} if self.split else {}

    def cores(self, side: Side) -> tuple[int, ...] | None:
        """Cores that a process of this side is tied to; None: all."""
        return getattr(self, side) if self.split and self.target == "cpu" else None

    def describe(self) -> str:
        """One line for people."""
        what = "NPUs" if self.target == "ascend" else "cores"
        if not self.split:
            return f"shared: all stages use {what} {_numbers(self.rollout)} in turn"
        return (
            f"split: {what} {_numbers(self.rollout)} for rollout, evaluation and annotation, "
            f"{_numbers(self.train)} for training"
        )


def _side(section: str) -> str:
    return "train" if section == "train" else "rollout"


def _numbers(devices: tuple[int, ...]) -> str:
    return ", ".join(map(str, devices))
