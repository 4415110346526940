"""The few modules of the network that differ between CPU and Ascend.

MindFormers' leaves call kernels that exist on Ascend alone. Everything else of its GPTModel runs on both devices, so
this table is all there is of device-specific network code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
from mindformers.parallel_core.training_graph.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention
from mindformers.parallel_core.training_graph.transformer.flash_attention import FlashAttention
from mindformers.parallel_core.training_graph.transformer.mlp import MLP, MLPInterleaved
from mindformers.parallel_core.training_graph.transformer.norm import FusedRMSNorm
from mindspore import nn, ops
from mindspore.ops.auto_generate import SigmoidGrad

from npd_ascend.models.attention import DenseCoreAttention, DenseMask, DenseSelfAttention, RotaryTables
from npd_ascend.models.kernels import MoveRows, TakeRows
from npd_ascend.models.norm import ProductNorm, Scaled, SourcedNorm
from npd_ascend.models.parallel.collectives import ALONE, CopyToTP, ProcessGroup, ReduceFromTP
from npd_ascend.models.vocabulary import OwnIds

MAX_SEGMENTS = 1024
"""Segments that one Ascend forward pass tells the flash kernel apart, padding tails included. CANN's kernel takes 2,048
cumulative ends, empty segments among them (aclnnFlashAttentionVarLenScore); MindSpore 2.9.0 documents 1,024."""


class SegmentEnds(nn.Cell):
    """What the flash kernel's TND layout needs to know of packed rows: where segments end
    (``rows.collate.segment_ends``).

    They are made on the host: what would make them of ids in the graph, ``ops.sort``, may lose accuracy on Ascend.
    """

    def construct(self, segment_ids: ms.Tensor, window: ms.Tensor) -> tuple[None, ms.Tensor]:
        return None, window


class FusedNorm(FusedRMSNorm):
    """MindFormers' fused norm for weights of any type: CANN's RmsNorm takes float32 with weights in float32 only.
    Arguments as ``ProductNorm`` has them."""

    def __init__(self, config: Any, dim: int, eps: float = 1e-6, group: ProcessGroup = ALONE):
        super().__init__(config, dim, eps)
        self.shared = CopyToTP(group) if group.size > 1 else nn.Identity()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """x [..., dim] -> the same shape and type."""
        out = self.norm(self.cast(x, self.compute_type), self.cast(self.shared(self.weight), self.compute_type))[0]
        return self.cast(out, x.dtype)


class ScaledFlash(FlashAttention):
    """MindFormers' flash attention with the softmax's scale of the configuration; its layers do not hand it on."""

    def __init__(self, config: Any, layer_number: int, **kwargs: Any):
        super().__init__(config, layer_number, softmax_scale=config.softmax_scale, **kwargs)


class BiasedProjection(RowParallelLinear):
    """Attention output projection with a bias; in MindFormers a flag shared with the MLP decides, which has none."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "bias": True, "skip_bias_add": False})


class ColumnShard(ColumnParallelLinear):
    """This rank's output columns of a projection; its input is whole."""

    def __init__(self, *args: Any, group: ProcessGroup, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "skip_bias_add": False})
        self.enter = CopyToTP(group)

    def construct(self, input_: ms.Tensor) -> tuple[ms.Tensor, None]:
        """input_ [S, B, in] -> [S, B, out / size]."""
        x, weight = self.enter(input_), self.cast(self.weight, self.compute_dtype)
        if self.has_bias:
            return self.morphed_forward_with_bias(x, weight, self.cast(self.bias, self.compute_dtype)), None
        return self.morphed_forward(x, weight), None


class RowShard(RowParallelLinear):
    """This rank's input columns of a projection, summed over the ranks; the bias, if any, is added once."""

    def __init__(self, *args: Any, group: ProcessGroup, biased: bool, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "bias": biased, "skip_bias_add": True})
        self.leave = ReduceFromTP(group)

    def construct(self, input_: ms.Tensor) -> tuple[ms.Tensor, None]:
        """input_ [S, B, in / size] -> [S, B, out]."""
        out = self.leave(self.morphed_forward(input_, self.cast(self.weight, self.compute_dtype)))
        return (out + self.cast(self.bias, out.dtype) if self.has_bias else out), None


class EmbeddingShard(nn.Cell):
    """Lookup in a table whose rows are cut over the ranks."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.own, self.leave, self.take = OwnIds(group), ReduceFromTP(group), TakeRows()

    def construct(self, ids: ms.Tensor, table: ms.Tensor) -> ms.Tensor:
        """ids [B, S], table [V / size, H] -> [B, S, H]."""
        row, mine = self.own(ids, table.shape[0])
        rows = self.take(table, row.reshape(-1)).reshape(*ids.shape, table.shape[1])
        return self.leave(rows * mine.expand_dims(-1).astype(table.dtype))


class GatherEmbedding(nn.Cell):
    """Rows of the embedding table; MindFormers' own lookup has no CPU kernel."""

    def construct(self, ids: ms.Tensor, table: ms.Tensor) -> ms.Tensor:
        return ops.gather(table, ids, 0)


class PositionsFirst(nn.Cell):
    """The order of the layers' hidden states, in place of the embedding's transpose. Two dimensions, because a reshape
    is a copy on the CPU, and each layer would need eight."""

    def __init__(self) -> None:
        super().__init__()
        self.move = MoveRows()

    def construct(self, x: ms.Tensor, order: tuple[int, ...]) -> ms.Tensor:
        """x [B, S, H] -> [S·B, H]."""
        return self.move(x, x.shape[:2], order[:2])


class GatedProducts(nn.Cell):
    """(silu(x Gᵀ) · (x Uᵀ)) Dᵀ of a ``SourcedNorm``'s answer x, for whose backward pass only the first two products are
    kept. Automatic differentiation would keep x, three more arrays of their size and a copy of the weight. With σ the
    sigmoid, silu' = σ + g σ (1 - σ); MindSpore's own kernel of it is not vectorised on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.forth, self.back = ops.MatMul(transpose_b=True), ops.MatMul()
        self.to_weight = ops.MatMul(transpose_a=True)
        self.part, self.sigmoid, self.sigmoid_grad = ops.Slice(), ops.Sigmoid(), SigmoidGrad()
        self.scaled = Scaled()

    def construct(
        self, x: ms.Tensor, rows: ms.Tensor, factor: ms.Tensor, scale: ms.Tensor, weight: ms.Tensor, down: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        """x [N, H]; ``rows``, ``factor``, ``scale`` as the norm gives them; weight [2 F, H] of G and U, one behind the
        other; down [H, F] -> [N, H], and products [N, F]."""
        to_gate, to_up = self._halves(weight)
        gate, up = self.forth(x, to_gate), self.forth(x, to_up)
        return self.forth(gate * self.sigmoid(gate) * up, down), gate, up

    def bprop(
        self,
        x: ms.Tensor,
        rows: ms.Tensor,
        factor: ms.Tensor,
        scale: ms.Tensor,
        weight: ms.Tensor,
        down: ms.Tensor,
        out: Any,
        dout: Any,
    ) -> tuple[ms.Tensor, ...]:
        """The products are nobody's input."""
        _, gate, up = out
        # Else the compiler would take what the forward pass made, and keep it.
        gate, weight = ops.depend(gate, dout[0]), ops.depend(weight, dout[0])
        x = self.scaled(ops.depend(rows, dout[0]), factor, scale).astype(gate.dtype)
        to_gate, to_up = self._halves(weight)
        sigmoid = self.sigmoid(gate)
        silu = gate * sigmoid
        d_down = self.to_weight(dout[0], silu * up)
        d = self.back(dout[0], down)
        d_up, d_gate = d * silu, d * up * (sigmoid + self.sigmoid_grad(sigmoid, gate))
        dx = self.back(d_gate, to_gate) + self.back(d_up, to_up)
        nothing = ops.zeros_like(rows), ops.zeros_like(factor), ops.zeros_like(scale)
        return dx, *nothing, ops.concat((self.to_weight(d_gate, x), self.to_weight(d_up, x))), d_down

    def _halves(self, weight: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        half = weight.shape[0] // 2, weight.shape[1]
        return self.part(weight, (0, 0), half), self.part(weight, (half[0], 0), half)


class DenseMLP(MLP):
    """SwiGLU in two products, because cutting and joining activations costs more than cutting the weight."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.products = GatedProducts()
        # Of a share: what its projections do around their products.
        self.enter = getattr(self.linear_fc1, "enter", nn.Identity())
        self.leave = getattr(self.linear_fc2, "leave", nn.Identity())

    def construct(
        self, hidden_states: tuple[ms.Tensor, ...], per_token_scale: None = None, extra_loss: float = 0.0
    ) -> tuple[ms.Tensor, None, float]:
        """hidden_states [S·B, H] with its sources, as ``SourcedNorm`` gives them -> [S·B, H]."""
        x, rows, factor, scale = hidden_states
        out, _, _ = self.products(self.enter(x), rows, factor, scale, self.linear_fc1.weight, self.linear_fc2.weight)
        return self.leave(out), None, extra_loss


@dataclass(frozen=True)
class DeviceModules:
    """Device-specific parts.

    Attributes:
        norm: class of the RMS norms of query and key heads, and of the last.
        layer_norm: class of those before attention and MLP.
        self_attention, core_attention, mlp: classes inside a layer.
        interleaved: whether the MLP wants gate and up rows in turn, so that a tensor-parallel slice holds both; one
            behind the other is faster on the CPU.
        flash: whether flash attention with cumulative segment ends is used in place of a dense mask.
        config: settings of MindFormers' TransformerConfig that go with them.
    """

    norm: type
    layer_norm: type
    self_attention: type
    core_attention: type
    mlp: type
    interleaved: bool
    flash: bool
    config: dict[str, Any]

    def patch(self, model: Any, group: ProcessGroup) -> None:
        """Replaces inside a built GPTModel what its specification cannot name."""
        if group.size > 1:
            model.embedding.word_embeddings.embedding_morph = EmbeddingShard(group)
        elif not self.flash:
            model.embedding.word_embeddings.embedding_morph = GatherEmbedding()
        if not self.flash:
            model.embedding.transpose = PositionsFirst()
            model.rotary_pos_emb = RotaryTables(model.rotary_pos_emb, model.config)

    def mask(self, row_length: int) -> nn.Cell:
        """Cell: (segment_ids, window) -> (attention mask, cumulative segment ends), one of them None."""
        return SegmentEnds() if self.flash else DenseMask(row_length)


DEVICE_MODULES = {
    "cpu": DeviceModules(
        ProductNorm, SourcedNorm, DenseSelfAttention, DenseCoreAttention, DenseMLP, interleaved=False, flash=False,
        config={"use_flash_attention": False, "hidden_act": "silu"}),
    "ascend": DeviceModules(
        FusedNorm, FusedNorm, SelfAttention, ScaledFlash, MLPInterleaved, interleaved=True, flash=True,
        config={"use_flash_attention": True, "use_eod_attn_mask_compression": True,
                "hidden_act": "swiglu", "bias_swiglu_fusion": True, "apply_rope_fusion": True}),
}  # fmt: skip
