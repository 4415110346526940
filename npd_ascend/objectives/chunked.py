"""Head and loss in one pass over chunks of rows: at no time more than one [rows, V] chunk of logits.

A chunk's logits are made, used for loss and gradient, and dropped; what stays is dLoss/dHidden and dLoss/dHead,
both of the size of their inputs. Backward only scales them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import mint, nn, ops

from npd_ascend.config.schema import LossConfig
from npd_ascend.models.elementwise import log
from npd_ascend.models.peers import ALONE, Peers, Sum
from npd_ascend.models.vocabulary import LogProbs, MaskPadding, OwnIds
from npd_ascend.objectives.registry import DIVERGENCE, Norm, find_divergences
from npd_ascend.objectives.support import on_support


class AddAt(nn.Cell):
    """x [R, V] with values [R, n] added in the columns index [R, n] of their rows; equal columns add up.

    MindSpore's scatter of the CPU can only replace on Ascend, and that of Ascend has no CPU kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ascend = ms.get_context("device_target") == "Ascend"

    def construct(self, x: ms.Tensor, index: ms.Tensor, values: ms.Tensor) -> ms.Tensor:
        if self.ascend:
            return mint.scatter_add(x, 1, index, values)
        return ops.tensor_scatter_elements(x, index, values, 1, "add")


class ChunkedLoss(nn.Cell):
    """Σ_n (1 − λ) w_n0 CE_n + λ Σ_j w_nj D_j,n(a_nj), from hidden states; with one divergence D and equal columns of w
    paper eq. (1). A signed w_n0 makes the CE term a policy gradient.

    CE and every divergence see the student only through a few log-probs a row: those of the label and of the k
    stored tokens. So the gradient g with respect to these, by automatic differentiation on [rows, k], gives that
    of all logits in closed form: dz = scatter(g) − softmax(z) Σ g.

    Args:
        loss: λ, divergence, normalisation, CE labels.
        chunk: rows whose logits stand in memory at once.
        peers: ranks over which head and logits are cut by vocabulary. A chunk then takes one collective, dHidden
            one at the end; everything but dHead comes out the same on all of them.
        vocabulary: ids that count; those beyond have no probability, and their rows of the head no gradient. None: all.

    Raises:
        UserError: unknown divergence, or one that does not go with the normalisation.
    """

    def __init__(self, loss: LossConfig, chunk: int, peers: Peers = ALONE, vocabulary: int | None = None):
        super().__init__()
        self.chunk = chunk
        self.cut = peers.size > 1
        self.sum, self.own, self.logprobs = Sum(peers), OwnIds(peers), LogProbs(peers)
        self.mask = MaskPadding(vocabulary, peers)
        self.kd = loss.kd_weight
        self.ce = 0.0 if loss.ce_labels == "none" else 1.0 - loss.kd_weight
        if self.kd:
            terms = [_term(found.function, loss.topk_norm, j) for j, (found, _) in enumerate(find_divergences(loss))]
            self.value = functools.reduce(_sum, terms)
            self.gradient = ms.grad(self.value, 0)
        self.logits = ops.MatMul(transpose_b=True)
        self.to_hidden = ops.MatMul()
        self.to_head = ops.MatMul(transpose_a=True)
        self.add_at = AddAt()

    def construct(self, hidden: ms.Tensor, head: ms.Tensor, targets: ms.Tensor, teacher: ms.Tensor,
                  weights: ms.Tensor, parameters: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Loss sums and, for backward, gradients.

        Args:
            hidden: [N, H] in the compute type.
            head: [V, H], or this rank's rows [V / size, H].
            targets: [N, 1 + k] int32, CE label first, then the stored ids; [N, 1] when λ = 0.
            teacher: [N, k] float32 log-probs of the stored ids; not looked at when λ = 0.
            weights: [N, 1 + M] float32, of CE and of each of M divergences; 0 in rows that do not count.
            parameters: [N, M] float32, of the divergences, inside (0, 1); not looked at when λ = 0.

        Returns:
            (loss, CE, D) sums over rows, weighted, float32 scalars; then dHidden [N, H], dHead (as ``head``) of the
            first.
        """
        rows = hidden.shape[0]
        chunk = min(self.chunk, rows)
        parts = (rows + chunk - 1) // chunk
        rest = parts * chunk - rows  # empty rows that fill the last chunk
        head_c = head.astype(hidden.dtype)
        if parts == 1:
            ce, kd, dh, dw = self._one(hidden, head_c, targets, teacher, weights, parameters)
            return self.ce * ce + self.kd * kd, ce, kd, self.sum(dh), dw
        h = _filled(hidden, rest).reshape(parts, chunk, hidden.shape[1])
        t = _filled(targets, rest).reshape(parts, chunk, targets.shape[1])
        p = _filled(teacher, rest).reshape(parts, chunk, teacher.shape[1])
        w = _filled(weights, rest).reshape(parts, chunk, weights.shape[1])
        a = _filled(parameters, rest).reshape(parts, chunk, parameters.shape[1])
        # Trailing chunks that do not count are not computed, so rows may be as many as a batch could ever need.
        counts = (w != 0).astype(ms.int32).reshape(parts, -1).max(axis=1)
        used = (counts * ops.arange(1, parts + 1).astype(ms.int32)).max()
        # A condition on a tensor keeps this a loop: unrolled, every chunk would have [chunk, V] buffers of its own.
        i = ms.Tensor(0, ms.int32)
        ce_sum, kd_sum = ms.Tensor(0.0, ms.float32), ms.Tensor(0.0, ms.float32)
        d_hidden, d_head = h * 0, head * 0.0
        while i < used:
            ce, kd, dh, dw = self._one(h[i], head_c, t[i], p[i], w[i], a[i])
            ce_sum, kd_sum = ce_sum + ce, kd_sum + kd
            d_hidden = ops.tensor_scatter_update(d_hidden, i.reshape(1, 1), dh.expand_dims(0))
            d_head = d_head + dw
            i = i + 1
        merged = d_hidden.reshape(parts * chunk, hidden.shape[1])
        merged = self.sum(merged[:rows] if rest else merged)
        return self.ce * ce_sum + self.kd * kd_sum, ce_sum, kd_sum, merged, d_head

    def bprop(self, hidden: ms.Tensor, head: ms.Tensor, targets: ms.Tensor, teacher: ms.Tensor, weights: ms.Tensor,
              parameters: ms.Tensor, out: Any, dout: Any) -> tuple[ms.Tensor, ...]:
        """Only the loss has a gradient, and only towards ``hidden`` and ``head``."""
        scale = dout[0]
        return (out[3] * scale.astype(out[3].dtype), out[4] * scale, targets * 0, teacher * 0.0, weights * 0.0,
                parameters * 0.0)

    def _one(self, hidden: ms.Tensor, head: ms.Tensor, targets: ms.Tensor, teacher: ms.Tensor,
             weights: ms.Tensor, parameters: ms.Tensor) -> tuple[ms.Tensor, ...]:
        z = self.mask(self.logits(hidden, head).astype(ms.float32))
        if self.cut:
            logz, seen = self.logprobs(z, targets)
            q = ops.exp(z - logz)
        else:
            q = ops.softmax(z, -1)
            # ln Z = max z - ln max q: max q is at least 1/V, and no [rows, V] array of logarithms is needed.
            seen = ops.gather_elements(z, 1, targets) - (z.max(-1, keepdims=True) - log(q.max(-1, keepdims=True)))
        column = weights[:, :1]
        ce = -(seen[:, :1] * column).sum()
        g = -self.ce * column
        kd = 0.0 * ce
        if self.kd:
            kd = self.value(seen[:, 1:], teacher, weights, parameters)
            g = ops.concat((g, self.kd * self.gradient(seen[:, 1:], teacher, weights, parameters)), 1)
        dz = q * -g.sum(-1, keepdims=True)
        if self.cut:
            targets, mine = self.own(targets, z.shape[1])
            g = g * mine
        dz = self.add_at(dz, targets, g).astype(hidden.dtype)
        return ce, kd, self.to_hidden(dz, head), self.to_head(dz, hidden).astype(ms.float32)


def _term(function: DIVERGENCE, norm: Norm, j: int) -> Callable[..., Any]:
    """Weighted sum over rows of divergence number ``j``."""

    def term(logq: ms.Tensor, logp: ms.Tensor, weights: ms.Tensor, parameters: ms.Tensor) -> ms.Tensor:
        p, q = on_support(norm, logp, logq)
        return (function(p, q, parameters[:, j : j + 1]) * weights[:, j + 1]).sum()

    return term


def _sum(one: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    def both(logq: ms.Tensor, logp: ms.Tensor, weights: ms.Tensor, parameters: ms.Tensor) -> ms.Tensor:
        return one(logq, logp, weights, parameters) + other(logq, logp, weights, parameters)

    return both


def _filled(x: ms.Tensor, rows: int) -> ms.Tensor:
    return ops.concat((x, ops.zeros((rows,) + x.shape[1:], x.dtype)), 0) if rows else x
