"""The logarithm with the same bits whenever it is called, so that a resumed run is the run that was not stopped."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import ops

from npd_ascend.models.kernels import on_ascend

_MULTIPLE = 1024
_slice = ops.Slice()


def log(x: Any) -> Any:
    """ln x, element by element.

    MindSpore's kernel of the CPU takes whole vectors and what is left of a thread's share by different code, and tries
    other numbers of threads in a process's first calls, so that last bits change from call to call. Of a size that
    every number of threads cuts into whole vectors nothing is left over.

    Args:
        x: tensor of any shape, float32.

    Returns:
        The same shape.
    """
    if on_ascend():
        return ops.log(x)
    size = x.size
    missing = -size % _MULTIPLE
    flat = x.reshape(-1)
    if missing:
        flat = ops.concat((flat, ops.ones((missing,), ms.float32)))
    return _slice(ops.log(flat), (0,), (size,)).reshape(x.shape)
