"""Head and loss in one pass over chunks of rows: at no time more than one [rows, V] chunk of logits.

A chunk's logits are made, used for loss and gradient, and dropped; what stays is dLoss/dHidden and dLoss/dHead,
both of the size of their inputs. Backward only scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from npd_ascend.config.schema import LossConfig
from npd_ascend.models.elementwise import log
from npd_ascend.models.kernels import AddAt, Part, ScaledRows, on_ascend
from npd_ascend.models.parallel.collectives import ALONE, AllReduce, ProcessGroup
from npd_ascend.models.vocabulary import LogProbs, MaskPadding, OwnIds
from npd_ascend.objectives.inputs import LossInputs
from npd_ascend.objectives.registry import READS, Norm, Summand, input_names, summands
from npd_ascend.objectives.support import on_support


class ChunkedLoss(nn.Cell):
    """Σ_j scale_j Σ_n w_nj term_j(n), from hidden states: a weighted sum of terms over rows (``registry.summands``);
    with cross-entropy, one divergence and equal columns of w paper eq. (1).

    Every term sees the student only through a few log-probs a row: those of the label and of the k stored tokens. So
    the gradient g with respect to these, by automatic differentiation on [rows, 1 + k], gives that of all logits in
    closed form: dz = scatter(g) − softmax(z) Σ g. Over the whole vocabulary, k = V, nothing needs to be gathered or
    scattered but the label.

    Args:
        loss: terms, normalisation.
        chunk: rows whose logits stand in memory at once.
        group: ranks over which head and logits are cut by vocabulary. A chunk then takes one collective, dHidden
            one at the end; everything but dHead comes out the same on all of them.
        vocabulary: ids that count; those beyond have no probability, and their rows of the head no gradient. None: all.
        whole_vocabulary: the teacher's log-probs are those of all ids that count, in their order, so that no
            ``teacher_ids`` are read; ``topk_norm``, whose readings are then the same, does nothing. For a head that is
            not cut.

    Attributes:
        terms: what is summed, M of them.
        names: the ``LossInputs`` that it reads, in the order of ``construct``.

    Raises:
        UserError: an unknown term, or one that does not go with the normalisation.
        ValueError: the whole vocabulary of a head that is cut.
    """

    def __init__(
        self,
        loss: LossConfig,
        chunk: int,
        group: ProcessGroup = ALONE,
        vocabulary: int | None = None,
        whole_vocabulary: bool = False,
    ):
        super().__init__()
        if whole_vocabulary and group.size > 1:
            raise ValueError("a loss over the whole vocabulary needs a head that is not cut")
        self.chunk = chunk
        self.cut = group.size > 1
        self.sum, self.own, self.logprobs = AllReduce(group), OwnIds(group), LogProbs(group)
        self.mask = MaskPadding(vocabulary, group)
        self.terms = summands(loss)
        self.names = input_names(self.terms)
        if whole_vocabulary:
            self.names = tuple(name for name in self.names if name != "teacher_ids")
        self.scales = ms.Tensor([s.scale for s in self.terms], ms.float32)
        at = {name: i for i, name in enumerate(self.names)}
        self.labels, self.weights, self.support = at["labels"], at["weights"], at.get("teacher_ids", -1)
        self.teacher = at.get("teacher_logprobs", -1)
        self.whole = whole_vocabulary and self.teacher >= 0
        self.value = ms.value_and_grad(
            _objective(self.terms, "raw" if self.whole else loss.topk_norm, at),
            (0, 1) if self.teacher >= 0 else 0,
            has_aux=True,
        )
        self.logits = ops.MatMul(transpose_b=True)
        self.to_hidden = ops.MatMul()
        self.to_head = ops.MatMul(transpose_a=True)
        self.add_at, self.scaled, self.part = AddAt(), ScaledRows(), Part()
        self.unrolled = on_ascend()

    def tensors(self, inputs: LossInputs) -> tuple[ms.Tensor, ...]:
        """What ``construct`` takes as ``inputs``."""
        return tuple(ms.Tensor(array) for array in inputs.pack(self.names))

    def construct(self, hidden: ms.Tensor, head: ms.Tensor, inputs: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        """Loss sums and, for backward, gradients.

        Args:
            hidden: [N, H] in the compute type.
            head: [V, H], or this rank's rows [V / size, H].
            inputs: see ``LossInputs``, those of ``names``.

        Returns:
            The loss, a float32 scalar; the sum over rows of each term, weighted by the rows' weights alone [M]; then
            dHidden [N, H], dHead (as ``head``) of the loss.
        """
        rows = hidden.shape[0]
        chunk = min(self.chunk, rows)
        parts = (rows + chunk - 1) // chunk
        rest = parts * chunk - rows  # empty rows that fill the last chunk
        head_c = head.astype(hidden.dtype)
        if parts == 1:
            sums, dh, dw = self._one(hidden, head_c, inputs)
            return (sums * self.scales).sum(), sums, self.sum(dh), dw
        if self.unrolled:
            return self._unrolled(hidden, head_c, inputs)
        h = _filled(hidden, rest).reshape(parts, chunk, hidden.shape[1])
        filled: tuple[ms.Tensor, ...] = ()
        for x in inputs:
            filled = filled + (_filled(x, rest).reshape((parts, chunk) + x.shape[1:]),)
        # Trailing chunks that do not count are not computed, so rows may be as many as a batch could ever need.
        counts: Any = (filled[self.weights] != 0).astype(ms.int32).reshape(parts, -1).max(axis=1)
        used = (counts * ops.arange(1, parts + 1).astype(ms.int32)).max()
        # A condition on a tensor keeps this a loop: unrolled, every chunk would have [chunk, V] buffers of its own.
        i = ms.Tensor(0, ms.int32)
        sums = self.scales * 0.0
        d_hidden, d_head = h * 0, head * 0.0
        while i < used:
            own: tuple[ms.Tensor, ...] = ()
            for x in filled:
                own = own + (x[i],)
            some, dh, dw = self._one(h[i], head_c, own)
            sums = sums + some
            d_hidden = ops.tensor_scatter_update(d_hidden, i.reshape(1, 1), dh.expand_dims(0))
            d_head = d_head + dw
            i = i + 1
        merged = d_hidden.reshape(parts * chunk, hidden.shape[1])
        merged = self.sum(merged[:rows] if rest else merged)
        return (sums * self.scales).sum(), sums, merged, d_head

    def bprop(
        self, hidden: ms.Tensor, head: ms.Tensor, inputs: tuple[ms.Tensor, ...], out: Any, dout: Any
    ) -> tuple[Any, ...]:
        """Only the loss has a gradient, and only towards ``hidden`` and ``head``."""
        scale = dout[0]
        nothing: tuple[ms.Tensor, ...] = ()
        for x in inputs:
            nothing = nothing + (x * 0,)
        return out[2] * scale.astype(out[2].dtype), out[3] * scale, nothing

    def _unrolled(self, hidden: ms.Tensor, head: ms.Tensor, inputs: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        """All chunks, as many as there can be: an NPU would wait for the host before each turn of a loop that ends by
        data. The reader makes rows for the fullest batch, so little is computed in vain."""
        sums, dh, d_head = self._chunk_at(hidden, head, inputs, 0, hidden)
        parts: tuple[ms.Tensor, ...] = (dh,)
        for first in range(self.chunk, hidden.shape[0], self.chunk):
            some, dh, dw = self._chunk_at(hidden, head, inputs, first, d_head)
            sums, parts, d_head = sums + some, parts + (dh,), d_head + dw
        return (sums * self.scales).sum(), sums, self.sum(ops.concat(parts)), d_head

    def _chunk_at(
        self, hidden: ms.Tensor, head: ms.Tensor, inputs: tuple[ms.Tensor, ...], first: int, after: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        """``_one`` from row ``first`` on, and not before ``after`` is there: chunks then share their memory."""
        stop = min(first + self.chunk, hidden.shape[0])
        own: tuple[ms.Tensor, ...] = ()
        for x in inputs:
            own = own + (self.part(x, 0, first, stop),)
        return self._one(ops.depend(self.part(hidden, 0, first, stop), after), head, own)

    def _one(self, hidden: ms.Tensor, head: ms.Tensor, inputs: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        """Sums [M], dHidden [R, H] and dHead of one chunk of R rows."""
        z = self.mask(self.logits(hidden, head).astype(ms.float32))
        targets = inputs[self.labels].expand_dims(1)
        if self.whole:
            sums, dz = self._everywhere(z, targets, inputs)
        else:
            sums, dz = self._on_support(z, targets, inputs)
        dz = dz.astype(hidden.dtype)
        return sums, self.to_hidden(dz, head), self.to_head(dz, hidden).astype(ms.float32)

    def _on_support(
        self, z: ms.Tensor, targets: ms.Tensor, inputs: tuple[ms.Tensor, ...]
    ) -> tuple[ms.Tensor, ms.Tensor]:
        """Sums and dz where the terms see the label [R, 1] and, if any, the stored tokens."""
        if self.support >= 0:
            targets = ops.concat((targets, inputs[self.support]), 1)
        if self.cut:
            logz, seen = self.logprobs(z, targets)
            q = ops.exp(z - logz)
        else:
            q = ops.softmax(z, -1)
            # ln Z = max z - ln max q: max q is at least 1/V, and no [rows, V] array of logarithms is needed.
            seen = ops.gather_elements(z, 1, targets) - (z.max(-1, keepdims=True) - log(q.max(-1, keepdims=True)))
        if self.support >= 0:
            (_, sums), (g, g_support) = self.value(self._first(seen), self.part(seen, 1, 1, seen.shape[1]), inputs)
            g = ops.concat((g.expand_dims(1), g_support), 1)
        else:
            (_, sums), g = self.value(self._first(seen), seen, inputs)
            g = g.expand_dims(1)
        dz = self.scaled(q, -g.sum(-1, keepdims=True))
        if self.cut:
            targets, mine = self.own(targets, z.shape[1])
            g = g * mine
        return sums, self.add_at(dz, targets, g)

    def _everywhere(
        self, z: ms.Tensor, labels: ms.Tensor, inputs: tuple[ms.Tensor, ...]
    ) -> tuple[ms.Tensor, ms.Tensor]:
        """Sums and dz where the support is the whole vocabulary."""
        logq = ops.log_softmax(z, -1)
        label = ops.gather_elements(logq, 1, labels).reshape(-1)
        width = inputs[self.teacher].shape[1]  # what is beyond is padding, of the head alone
        (_, sums), (g, dz) = self.value(label, self.part(logq, 1, 0, width), inputs)
        total = (g + dz.sum(-1)).expand_dims(1)
        if width < z.shape[1]:
            dz = ops.concat((dz, ops.zeros((z.shape[0], z.shape[1] - width), dz.dtype)), 1)
        return sums, self.add_at(dz - self.scaled(ops.softmax(z, -1), total), labels, g.expand_dims(1))

    def _first(self, x: ms.Tensor) -> ms.Tensor:
        return self.part(x, 1, 0, 1).reshape(-1)


def _objective(terms: list[Summand], norm: Norm, at: dict[str, int]) -> Callable[..., Any]:
    """(student's log-prob of the label [R], of the stored tokens [R, k], inputs) -> loss, and each term's sum [M].

    Args:
        terms: what is summed.
        norm: of both models on the stored support.
        at: positions of the inputs.
    """
    order = tuple(READS)
    part = Part()
    parts = tuple(_weighted(s, part, j, tuple(order.index(name) for name in s.term.reads)) for j, s in enumerate(terms))
    scales = tuple(s.scale for s in terms)
    weights, logp, labels, rollout, advantages, parameters = (
        at.get(name, -1)
        for name in ("weights", "teacher_logprobs", "teacher_labels", "rollout_logprobs", "advantages", "parameters")
    )

    def objective(label: ms.Tensor, support: ms.Tensor, inputs: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ms.Tensor]:
        # In the order of READS; what is not among the inputs is read by no term. The parameter's column follows.
        student, teacher = support, support
        if logp >= 0:
            teacher, student = on_support(norm, inputs[logp], support)
        known = (
            label,
            student,
            teacher,
            inputs[labels],
            inputs[rollout],
            inputs[advantages],
            inputs[parameters],
            log,
            ops.stop_gradient,
        )
        total: Any = 0.0
        sums: tuple[ms.Tensor, ...] = ()
        for j in range(len(parts)):
            value = parts[j](known, inputs[weights])
            total = total + scales[j] * value
            sums = sums + (value.reshape(1),)
        return total, ops.concat(sums)

    return objective


def _weighted(summand: Summand, part: Part, j: int, reads: tuple[int, ...]) -> Callable[..., Any]:
    """Weighted sum over rows of term number ``j``, whose arguments are those of numbers ``reads``."""
    function, parameter, constants = summand.term.function, tuple(READS).index("parameter"), summand.constants

    def value(known: tuple[Any, ...], weights: ms.Tensor) -> ms.Tensor:
        given: tuple[Any, ...] = ()
        for i in reads:
            given = given + ((part(known[i], 1, j, j + 1),) if i == parameter else (known[i],))
        return (function(*given, *constants) * part(weights, 1, j, j + 1).reshape(-1)).sum()

    return value


def _filled(x: ms.Tensor, rows: int) -> ms.Tensor:
    return ops.concat((x, ops.zeros((rows,) + x.shape[1:], x.dtype)), 0) if rows else x
