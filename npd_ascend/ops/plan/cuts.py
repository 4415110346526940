"""Settings with which training that does not fit on its devices would."""

from __future__ import annotations

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.mapping import heads_of, shard_of
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
            if (
                copies % n == 0
                and _cuts(config, student, t.tensor_parallel, n)
                and train_memory(
                    config, student, npu, recompute=False, context_parallel=n, data_parallel=copies // n
                ).fits
            ):
                return text + f"; train.context_parallel: {n} and train.data_parallel: {copies // n} fit without it"
        return text
    for width in (1, 2, 4, 8):
        for context in (n for n in (1, 2, 4, 8) if n <= width):
            tensor, copies = width // context, max(1, devices // width)
            if (
                _cuts(config, student, tensor, context)
                and train_memory(
                    config,
                    student,
                    npu,
                    recompute=True,
                    sharding=True,
                    tensor_parallel=tensor,
                    context_parallel=context,
                    data_parallel=copies,
                ).fits
            ):
                cuts = [
                    f"train.{name}: {n}"
                    for name, n in (("tensor_parallel", tensor), ("context_parallel", context))
                    if n > 1
                ]
                text = ", ".join(["train.recompute: true", "train.optimizer_sharding: true"] + cuts)
                return f"{text} would" + (f", on {devices} devices" if cuts else "")
    return "a shorter pack.row_length would"


def _cuts(config: Config, student: ModelSpec, tensor_parallel: int, context_parallel: int) -> bool:
    """Whether model and rows come out even."""
    try:
        heads_of(shard_of(student, tensor_parallel), context_parallel)
    except UserError:
        return False
    return config.pack.row_length % context_parallel == 0
