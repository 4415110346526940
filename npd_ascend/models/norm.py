"""RMS norm for devices without a fused kernel."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from npd_ascend.models.parallel.collectives import ALONE, CopyToTP, ProcessGroup


class Scaled(nn.Cell):
    """Rows [N, dim] times their factors [N, 1] and the weight [1, dim]: what a norm answers, made again where keeping
    it would take more memory than making it takes time."""

    def __init__(self) -> None:
        super().__init__()
        self.product = ops.MatMul()

    def construct(self, rows: ms.Tensor, factor: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
        return rows * self.product(factor, weight)


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
        self.scaled = Scaled()

    def construct(self, rows: ms.Tensor, weight: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """rows [N, dim], weight [1, dim] -> [N, dim], and the factors [N, 1]."""
        factor = self.rsqrt(self.product(rows * rows, self.mean) + self.eps)
        return self.scaled(rows, factor, weight), factor

    def bprop(self, rows: ms.Tensor, weight: ms.Tensor, out: Any, dout: Any) -> tuple[ms.Tensor, ms.Tensor]:
        """The factors are nobody's input."""
        dy = dout[0]
        factor = ops.depend(out[1], dy)  # else the compiler would keep the forward pass's outer product
        t = dy * rows
        share = self.product(t, weight.reshape(-1, 1)) * (factor * factor * factor * (1.0 / self.dim))
        dx = self.scaled(dy, factor, weight) - rows * self.product(share, self.ones)
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
        return self._normed(x)[0]

    def _normed(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """The answer, and of what ``Scaled`` makes it in rows of float32."""
        rows, weight = x.reshape(-1, self.dim).astype(ms.float32), self.shared(self.weight).reshape(1, -1)
        weight = weight.astype(ms.float32)
        out, factor = self.normalise(rows, weight)
        return out.reshape(x.shape).astype(x.dtype), rows, factor, weight


class SourcedNorm(ProductNorm):
    """ProductNorm that also hands on of what its answer can be made again, so that who multiplies it need not keep
    it."""

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """x [N, dim] -> its norm [N, dim]; rows [N, dim], factors [N, 1] and weight [1, dim], without gradients."""
        out, rows, factor, weight = self._normed(x)
        return out, ops.stop_gradient(rows), ops.stop_gradient(factor), ops.stop_gradient(weight)


class NormedProduct(nn.Cell):
    """x Wᵀ of a ``SourcedNorm``'s answer x, which is made again for the gradient of W."""

    def __init__(self) -> None:
        super().__init__()
        self.forth, self.back = ops.MatMul(transpose_b=True), ops.MatMul()
        self.to_weight, self.scaled = ops.MatMul(transpose_a=True), Scaled()

    def construct(
        self, x: ms.Tensor, rows: ms.Tensor, factor: ms.Tensor, scale: ms.Tensor, weight: ms.Tensor
    ) -> ms.Tensor:
        """x [N, H]; ``rows``, ``factor``, ``scale`` as the norm gives them; weight [F, H] -> [N, F]."""
        return self.forth(x, weight)

    def bprop(
        self,
        x: ms.Tensor,
        rows: ms.Tensor,
        factor: ms.Tensor,
        scale: ms.Tensor,
        weight: ms.Tensor,
        out: ms.Tensor,
        dout: ms.Tensor,
    ) -> tuple[ms.Tensor, ...]:
        x = self.scaled(ops.depend(rows, dout), factor, scale).astype(dout.dtype)  # not before it is needed
        nothing = ops.zeros_like(rows), ops.zeros_like(factor), ops.zeros_like(scale)
        return self.back(dout, weight), *nothing, self.to_weight(dout, x)
