"""RMS norm for devices without a fused kernel."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from npd_ascend.models.parallel.collectives import ALONE, CopyToTP, ProcessGroup


class ProductNorm(nn.Cell):
    """x / √(mean(x²) + ε) · weight (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4), in float32.

    The mean and the outer product of the rows' factors with the weight are matrix products: on a CPU, and more so in
    the backward pass, several times as fast as sums along an axis and broadcasts.

    Args:
        config: MindFormers' TransformerConfig.
        dim: size of the normalised axis, the last.
        eps: ε.
        group: processes that normalise different heads with this one weight; its gradient is summed over them.
    """

    def __init__(self, config: Any, dim: int, eps: float = 1e-6, group: ProcessGroup = ALONE):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = ms.Parameter(initializer("ones", dim, config.params_dtype))
        self.mean = ms.Tensor(np.full((dim, 1), 1.0 / dim, np.float32))
        self.product, self.rsqrt = ops.MatMul(), ops.Rsqrt()
        self.shared = CopyToTP(group) if group.size > 1 else nn.Identity()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [..., dim] -> the same shape and type."""
        rows = x.reshape(-1, self.dim).astype(ms.float32)
        factor = self.rsqrt(self.product(rows * rows, self.mean) + self.eps)
        out = rows * self.product(factor, self.shared(self.weight).reshape(1, -1).astype(ms.float32))
        return out.reshape(x.shape).astype(x.dtype)
