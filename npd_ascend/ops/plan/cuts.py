"""Settings with which training that does not fit on its devices would."""

from __future__ import annotations

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.mapping import heads_of, layers_of, share_of
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan.devices import Npu
from npd_ascend.ops.plan.memory import train_memory


def what_fits(config: Config, student: ModelSpec, npu: Npu, devices: int) -> str:
    """Recomputation if that is enough, with what would spare it on the same devices; else the smallest cut.

    Args:
        config: the run, whose training does not fit.
        student: the model.
        npu: the device.
        devices: of all nodes.
    """
    t = config.train
    again = train_memory(config, student, npu, recompute=True)
    if again.fits:
        text = f"with train.recompute: true {again.needed / 1e9:.0f} GB, which fits"
        copies = t.data_parallel * t.context_parallel
        for n in range(t.context_parallel + 1, copies + 1):
            if copies % n == 0 and _cuts(config, student, t.tensor_parallel, n) and train_memory(
                    config, student, npu, recompute=False, context_parallel=n, data_parallel=copies // n).fits:
                return text + f"; train.context_parallel: {n} and train.data_parallel: {copies // n} fit without it"
        return text
    for stages, width in _shapes(devices):
        for context in (n for n in (1, 2, 4, 8) if n <= width):
            tensor, copies = width // context, max(1, devices // width // stages)
            sharding = copies * context > 1 or stages == 1
            if _cuts(config, student, tensor, context, stages) and train_memory(
                    config, student, npu, recompute=True, sharding=sharding, tensor_parallel=tensor,
                    context_parallel=context, data_parallel=copies, pipeline_parallel=stages).fits:
                cuts = [f"train.{name}: {n}" for name, n in (
                    ("tensor_parallel", tensor), ("context_parallel", context), ("pipeline_parallel", stages)) if n > 1]
                text = ", ".join(["train.recompute: true"] + ["train.optimizer_sharding: true"] * sharding + cuts)
                return f"{text} would" + (f", on {devices} devices" if cuts else "")
    return "a shorter pack.row_length would"


def _shapes(devices: int) -> list[tuple[int, int]]:
    """Stages, and ranks that share a stage's model and rows; stages only where these alone do not help."""
    return [(1, n) for n in (1, 2, 4, 8)] + [(p, n) for p in (2, 4, 8) for n in (1, 2, 4, 8) if p * n <= devices]


def _cuts(config: Config, student: ModelSpec, tensor_parallel: int, context_parallel: int, stages: int = 1) -> bool:
    """Whether model and rows come out even."""
    try:
        heads_of(share_of(student, tensor_parallel), context_parallel)
        layers_of(student, stages)
    except UserError:
        return False
    return config.pack.row_length % context_parallel == 0
