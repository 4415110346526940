"""RMS norm for devices without a fused kernel."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from npd_ascend.models.parallel.collectives import ALONE, CopyToTP, ProcessGroup


class _Normalise(nn.Cell):
    """Rows times the factors 1 / √(mean(x²) + ε) and the weight; its backward pass keeps rows and factors alone.

    The mean and the outer product of the rows' factors with the weight are matrix products: on a CPU several times as
    fast as sums along an axis and broadcasts. With f the factor of a row x, y = f x · w, and t = ∂y · x:
    ∂w = Σ f t, ∂x = f w · ∂y - x f³ (t · w) / H.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.mean = ms.Tensor(np.full((dim, 1), 1.0 / dim, np.float32))
        self.ones = ms.Tensor(np.ones((1, dim), np.float32))
        self.product, self.over_rows, self.rsqrt = ops.MatMul(), ops.MatMul(transpose_a=True), ops.Rsqrt()

    def construct(self, rows: ms.Tensor, weight: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """rows [N, dim], weight [1, dim] -> [N, dim], and the factors [N, 1]."""
        factor = self.rsqrt(self.product(rows * rows, self.mean) + self.eps)
        return rows * self.product(factor, weight), factor

    def bprop(self, rows: ms.Tensor, weight: ms.Tensor, out: Any, dout: Any) -> tuple[ms.Tensor, ms.Tensor]:
        """The factors are nobody's input."""
        dy = dout[0]
        factor = ops.depend(out[1], dy)  # else the compiler would keep the forward pass's outer product
        t = dy * rows
        share = self.product(t, weight.reshape(-1, 1)) * (factor * factor * factor * (1.0 / self.dim))
        dx = dy * self.product(factor, weight) - rows * self.product(share, self.ones)
        return dx, self.over_rows(factor, t)


class ProductNorm(nn.Cell):
    """x / √(mean(x²) + ε) · weight (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4), in float32.

    Args:
        config: MindFormers' TransformerConfig.
        dim: size of the normalised axis, the last.
        eps: ε.
        group: processes that normalise different heads with this one weight; its gradient is summed over them.
    """

    def __init__(self, config: Any, dim: int, eps: float = 1e-6, group: ProcessGroup = ALONE):
        super().__init__()
        self.dim = dim
        self.weight = ms.Parameter(initializer("ones", dim, config.params_dtype))
        self.normalise = _Normalise(dim, eps)
        self.shared = CopyToTP(group) if group.size > 1 else nn.Identity()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [..., dim] -> the same shape and type."""
        rows = x.reshape(-1, self.dim).astype(ms.float32)
        out, _ = self.normalise(rows, self.shared(self.weight).reshape(1, -1).astype(ms.float32))
        return out.reshape(x.shape).astype(x.dtype)
