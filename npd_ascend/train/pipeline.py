"""Training one stage of a pipeline: its graphs, what goes from stage to stage, and a step in the order of the schedule.

The stages' graphs are compiled apart, and what a forward pass leaves for its backward pass cannot go from one graph to
another. So the backward graph computes the stage again from its input, which is all that is kept of a micro-batch in
flight. The last stage needs its forward pass only there.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.compile_cache import Graphs
from npd_ascend.models.group import Group
from npd_ascend.models.network import CausalLM
from npd_ascend.models.peers import Sum, Swap
from npd_ascend.objectives.chunked import ChunkedLoss
from npd_ascend.rows.collate import RowBatch
from npd_ascend.train.adamw import AdamW
from npd_ascend.train.reader import MicroBatch
from npd_ascend.train.schedule_1f1b import Backward, Forward, MeetAfter, MeetBefore, one_forward_one_backward
from npd_ascend.train.step import Adds, PackedLoss, Trainer

_BEFORE = 10  # place of the hidden states among the arguments of PackedLoss
_HIDDEN = 4  # and among those of a stage


class Pull(nn.Cell):
    """A scalar whose gradient is that of the loss, once the next stage has told that of this stage's result."""

    def __init__(self, net: CausalLM):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, window: Tensor | None,
                  before: Tensor | None, gradient: Tensor) -> Tensor:
        """``gradient`` [S, B, H] of the hidden states that the network makes of its other arguments."""
        hidden = self.net(input_ids, position_ids, segment_ids, window, before)
        return (hidden.astype(ms.float32) * gradient.astype(ms.float32)).sum()


class StageBackward(Adds):
    """A stage that is not the last: adds gradients of its parameters, gives that of its input."""

    def __init__(self, net: CausalLM, optimizer: AdamW):
        super().__init__(optimizer)
        self.first = net.first
        self.differentiate = ms.value_and_grad(Pull(net), None if net.first else _HIDDEN, optimizer.params)

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, window: Tensor | None,
                  before: Tensor | None, gradient: Tensor) -> Tensor:
        """Gradient of ``before`` [S, B, H]; of the first stage, which has no input, a number without meaning."""
        value, gradients = self.differentiate(input_ids, position_ids, segment_ids, window, before, gradient)
        if self.first:
            self.add(gradients)
            return value
        self.add(gradients[1])
        return gradients[0]


class LastStage(Adds):
    """The last stage, both passes in one graph: adds gradients and sums, gives loss sum and gradient of its input."""

    def __init__(self, forward: PackedLoss, optimizer: AdamW, sums: Parameter):
        super().__init__(optimizer)
        self.sums = sums
        self.differentiate = ms.value_and_grad(forward, _BEFORE, optimizer.params, has_aux=True)

    def construct(self, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, window: Tensor | None,
                  positions: Tensor, targets: Tensor, teacher: Tensor, weights: Tensor, parameters: Tensor,
                  scale: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The micro-batch's loss sum, and the gradient of ``before`` [S, B, H]."""
        values, gradients = self.differentiate(input_ids, position_ids, segment_ids, window, positions, targets,
                                               teacher, weights, parameters, scale, before)
        self.add(gradients[1])
        ops.assign_add(self.sums, ops.stack((values[1], values[2], values[3])))
        return values[1], gradients[0]


class Links:
    """What goes between this stage and its neighbours.

    Attributes:
        before, after: meetings with them; at the ends of the pipeline not to be called.

    Args:
        net: this process's stage.
        group: who the neighbours are.
    """

    def __init__(self, net: CausalLM, group: Group):
        self.net = net
        self.before, self.after = Swap(group.before), Swap(group.after)

    def hidden(self, rows: RowBatch) -> Tensor | None:
        """What the last stage makes of these rows; None on the others. All stages call."""
        given = () if self.net.first else (self.before(self.net.no_hidden(rows)),)
        out = self.net(*self.net.inputs(rows), *given)
        if self.net.last:
            return out
        self.after(out)
        return None


class StageTrainer(Trainer):
    """One stage of a pipeline: a step takes the micro-batches through all stages in the order of 1F1B.

    Args:
        net: the stage.
        settings: loss, optimiser.
        chunk: rows of a loss chunk.
        group: replicas of the stage, and the other stages.
    """

    def __init__(self, net: CausalLM, settings: TrainConfig, chunk: int, group: Group):
        super().__init__(net, settings, chunk, group.replicas)
        self._stages, self._links = group.stages, Links(net, group)
        self._share = Sum(group.stages)

    def compile(self, batch: MicroBatch, graphs: Graphs) -> None:
        """Compiles the graphs of this stage for micro-batches of this shape."""
        none = self.net.no_hidden(batch.rows)
        before = None if self.net.first else none
        if self.net.last:
            graphs.compile(self._backward, *self._arguments(batch, 1), before)
        else:
            graphs.compile(self._backward, *self.net.inputs(batch.rows), before, none)
        graphs.compile(self._update, *self.optimizer.scalars(1e-3, 1))

    def accumulate_all(self, batches: list[MicroBatch], tokens: int) -> list[float]:
        """Adds the micro-batches of a step, the same number on all stages; every rank gets the loss sums of its
        pipeline."""
        inputs: dict[int, Tensor] = {}
        gradients: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        none = self.net.no_hidden(batches[0].rows)
        for action in one_forward_one_backward(self._stages.rank, self._stages.size, len(batches)):
            match action:
                case Forward(i):
                    given = () if self.net.first else (inputs[i],)
                    made = self.net(*self.net.inputs(batches[i].rows), *given)
                case Backward(i) if self.net.last:
                    loss, made = self._backward(*self._arguments(batches[i], tokens), inputs.pop(i))
                    losses.append(loss)
                case Backward(i):
                    made = self._backward(*self.net.inputs(batches[i].rows), inputs.pop(i, None), gradients.pop(i))
                case MeetBefore(gives, takes):
                    _keep(inputs, takes, self._links.before(none if gives is None else made))
                case MeetAfter(gives, takes):
                    _keep(gradients, takes, self._links.after(none if gives is None else made))
        own = np.array([float(x.asnumpy()) for x in losses] or [0.0] * len(batches), np.float32)
        return self._share(Tensor(own)).asnumpy().tolist()

    def accumulate(self, batch: MicroBatch, tokens: int) -> float:
        """A step's only micro-batch; see ``accumulate_all``."""
        return self.accumulate_all([batch], tokens)[0]

    def _make(self, settings: TrainConfig, chunk: int) -> None:
        if self.net.last:
            forward = PackedLoss(self.net, ChunkedLoss(settings.loss, chunk, self.net.peers))
            self._backward: Adds = LastStage(forward, self.optimizer, self._sums)
        else:
            self._backward = StageBackward(self.net, self.optimizer)


def _keep(held: dict[int, Tensor], batch: int | None, given: Tensor) -> None:
    if batch is not None:
        held[batch] = given
