"""MindFormers' static-graph GPTModel as the one network class for all supported checkpoints."""

from __future__ import annotations

import logging
import os
from typing import Any

import mindspore as ms
from mindformers import build_context
from mindformers.parallel_core.training_graph.base_models.gpt.gpt_model import GPTModel
from mindformers.parallel_core.training_graph.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttentionSubmodules
from mindformers.parallel_core.training_graph.transformer.mlp import MLPSubmodules
from mindformers.parallel_core.training_graph.transformer.transformer_block import TransformerBlockSubmodules
from mindformers.parallel_core.training_graph.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from mindformers.parallel_core.transformer_config import TransformerConfig
from mindformers.parallel_core.utils.init_method import init_method_zero
from mindformers.parallel_core.utils.spec_utils import ModuleSpec
from mindformers.tools.logger import get_logger
from mindspore import Parameter, nn

from npd_ascend.config.job import Device
from npd_ascend.errors import UserError
from npd_ascend.models.attention import window_of
from npd_ascend.models.device_modules import (
    DEVICE_MODULES,
    MAX_SEGMENTS,
    BiasedProjection,
    ColumnShard,
    DeviceModules,
    RowShard,
)
from npd_ascend.models.kernels import MoveRows
from npd_ascend.models.mapping import heads_of, shard_of
from npd_ascend.models.parallel.collectives import ALONE, AllGather, ProcessGroup
from npd_ascend.models.parallel.context import WholeRows
from npd_ascend.models.parallel.shards import TPShards
from npd_ascend.models.spec import ModelSpec
from npd_ascend.rows.collate import RowBatch, segment_ends
from npd_ascend.rows.slices import Slice

_FLASH_ROW = 2048
_context_made = False


def setup_context(device: Device) -> None:
    """Prepares MindSpore: graph mode, memory, whether kernels are deterministic. Later calls in the same process do
    nothing.

    Args:
        device: what for.
    """
    global _context_made
    if _context_made:
        return
    context: dict[str, Any] = {"mode": 0, "device_target": {"cpu": "CPU", "ascend": "Ascend"}[device.target]}
    if device.target == "ascend":
        context |= {"max_device_memory": device.max_device_memory, "device_id": int(os.environ.get("DEVICE_ID", "0"))}
    build_context(
        {"use_legacy": False, "use_parallel": False, "context": context, "parallel": {}, "parallel_config": {}}
    )
    ms.set_deterministic(device.deterministic)
    get_logger().setLevel(logging.WARNING)
    _context_made = True


def build(
    spec: ModelSpec,
    device: Device,
    row_length: int,
    *,
    params_dtype: str = "float32",
    group: ProcessGroup = ALONE,
    context: ProcessGroup = ALONE,
    bound: int | None = None,
) -> CausalLM:
    """An evaluation-mode network with zero weights; fill it with ``weights.load_hf``.

    Args:
        spec: architecture.
        device: target, and compute type of the linear layers.
        row_length: positions a row; static.
        params_dtype: type in which weights are held: float32 to train, the compute type to annotate.
        group: the processes that hold the model together (tensor parallel); all of them must call the network together.
        context: those that hold the positions of the rows together (context parallel); likewise.
        bound: tokens that a sample may have, whatever those at hand have; of ``attention.window_of``.

    Raises:
        UserError: a row length or type the device cannot do, or a model or rows that cannot be cut over that many
            devices.
    """
    if device.target == "cpu" and (device.dtype, params_dtype) != ("float32", "float32"):
        raise UserError("device.dtype bfloat16 needs an NPU; on cpu set device.dtype: float32")
    if device.target == "ascend" and (row_length < _FLASH_ROW or row_length % 16):
        raise UserError(
            f"row_length {row_length} (annotate, pack): the flash attention of Ascend needs at least {_FLASH_ROW} "
            "tokens a row and a multiple of 16"
        )
    if row_length % context.size:
        raise UserError(f"row_length {row_length}: not a multiple of context_parallel {context.size}")
    setup_context(device)
    return CausalLM(
        spec, DEVICE_MODULES[device.target], row_length, device.dtype, params_dtype, group, context, bound
    ).set_train(False)


class CausalLM(nn.Cell):
    """Packed rows in, final hidden states out; the head is left to the caller, who takes it in chunks.

    Args:
        spec: architecture.
        modules: device-specific modules.
        row_length: positions a row.
        compute_dtype, params_dtype: ``float32`` or ``bfloat16``.
        group: the tensor-parallel group. Each rank is a GPTModel with its share of the heads, MLP columns and
            vocabulary (Megatron-LM, arXiv:1909.08053); activations between the layers are whole on every rank.
        context: the context-parallel group. Each rank has its ``Slice`` of the positions everywhere but in attention.
        bound: as ``build`` has it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        modules: DeviceModules,
        row_length: int,
        compute_dtype: str,
        params_dtype: str,
        group: ProcessGroup = ALONE,
        context: ProcessGroup = ALONE,
        bound: int | None = None,
    ):
        super().__init__(auto_prefix=True)
        self.spec, self.group, self._bound = spec, group, bound
        self._tp_shards: TPShards | None = None
        self.slice = Slice(context.rank, context.size)
        self.compute_dtype = {"float32": ms.float32, "bfloat16": ms.bfloat16}[compute_dtype]
        own = shard_of(spec, group.size)
        heads_of(own, context.size)
        self.row_length = row_length
        self.interleaved, self.flash = modules.interleaved, modules.flash
        self.mask, self.move = modules.mask(row_length), MoveRows()
        config = _config(own, modules, row_length, compute_dtype, params_dtype)
        core: Any = modules.core_attention
        if context.size > 1:
            core = ModuleSpec(
                module=WholeRows, params={"core": core, "group": context, "length": row_length // context.size}
            )
        self.model = GPTModel(
            config=config,
            transformer_layer_spec=_block(own, modules, core, group),
            vocab_size=own.vocab_size,
            max_sequence_length=spec.max_positions,
            position_embedding_type="rope",
            post_process=False,
        )
        # In place of MindFormers' own: of scalings it knows some, with fixed parameters, and it would multiply angles
        # by YaRN's attention factor, which belongs to cosines and sines (here: to the softmax's scale).
        self.model.rotary_pos_emb.inv_freq = ms.Tensor(spec.rope.inverse_frequencies(spec.head_dim), ms.float32)
        modules.patch(self.model, group)
        if not spec.tie_embeddings:
            zeros = init_method_zero(config.params_dtype)((own.vocab_size, own.hidden_size))
            self.lm_head = Parameter(zeros, name="lm_head")

    @property
    def head_weight(self) -> Parameter:
        """Output projection [V, H], or this rank's rows of it; the embedding table itself when tied."""
        return self.model.embedding.word_embeddings.weight if self.spec.tie_embeddings else self.lm_head

    def window(self, rows: RowBatch) -> ms.Tensor | None:
        """The argument of that name for these rows."""
        if self.flash:
            return ms.Tensor(segment_ends(rows.segment_ids, min(rows.segment_ids.size, MAX_SEGMENTS)))
        window = window_of(rows.longest, rows.input_ids.shape[1], self._bound)
        return None if window is None else ms.Tensor(window)

    def inputs(self, rows: RowBatch) -> tuple[ms.Tensor | None, ...]:
        """Arguments of a call."""
        arrays = (self.slice.cut(rows.input_ids), self.slice.cut(rows.position_ids), rows.segment_ids)
        return (*(ms.Tensor(a) for a in arrays), self.window(rows))

    def tp_shards(self) -> TPShards:
        """How the parameters map to those of the whole model; gathering takes all ranks of the group."""
        if self._tp_shards is None:  # kept, because each of the cells compiles a graph for each shape
            group, cell = self.group, AllGather(self.group)
            self._tp_shards = TPShards(
                self.spec,
                interleaved=self.interleaved,
                rank=group.rank,
                size=group.size,
                gather=lambda x: cell(ms.Tensor(x)).asnumpy(),
            )
        return self._tp_shards

    def hold_in_compute_type(self) -> None:
        """Rounds the layers' matrices to the compute type, in which they are used anyway; for a network whose float32
        weights stand elsewhere. Embedding and head stay: their gradients are summed over many tokens."""
        for layer in self.model.decoder.layers:
            for p in layer.trainable_params():
                if p.ndim == 2 and p.dtype != self.compute_dtype:
                    p.set_dtype(self.compute_dtype)

    def recompute_layers(self) -> None:
        """Keeps the inputs of the layers only; their activations are computed again in the backward pass."""
        for layer in self.model.decoder.layers:
            layer.recompute()

    def construct(
        self, input_ids: ms.Tensor, position_ids: ms.Tensor, segment_ids: ms.Tensor, window: ms.Tensor | None = None
    ) -> ms.Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids, position_ids: [B, S] int32; of S / C own positions under context parallelism over C.
            segment_ids: [B, S] int32, of the whole rows. A position sees the earlier positions of equal segment id and
                itself; -1 marks padding.
            window: of ``attention.window_of``; no sample may be longer than that. Its values are 0, 1, ...: what
                tells the graph how far attention looks is its length. On Ascend the segments' ends, which the flash
                kernel needs in its place.

        Returns:
            [B * S, H] in the compute type; position s of row b is row b * S + s. Own positions only, as above.
        """
        mask, ends = self.mask(segment_ids, window)
        out = self.model(input_ids, position_ids, mask, actual_seq_len=ends)
        return self.move(out, (input_ids.shape[1], input_ids.shape[0]), (1, 0))


def _config(spec: ModelSpec, modules: DeviceModules, row_length: int, compute_dtype: str, params_dtype: str) -> Any:
    dtype = {"float32": ms.float32, "bfloat16": ms.bfloat16}[params_dtype]
    return TransformerConfig(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        ffn_hidden_size=spec.intermediate_size,
        num_attention_heads=spec.num_heads,
        num_query_groups=spec.num_kv_heads,
        kv_channels=spec.head_dim,
        layernorm_epsilon=spec.rms_norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=spec.qkv_bias,
        softmax_scale=spec.softmax_scale,
        position_embedding_type="rope",
        use_eod_reset=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # MindFormers builds a causal [S, S] constant from this even when the mask is handed in.
        seq_length=row_length if modules.flash else 16,
        pad_token_id=spec.pad_token_id,
        params_dtype=params_dtype,
        compute_dtype=compute_dtype,
        layernorm_compute_dtype="float32",
        softmax_compute_dtype="float32",
        rotary_dtype="float32",
        is_dynamic=False,
        init_method=init_method_zero(dtype),
        output_layer_init_method=init_method_zero(dtype),
        **modules.config,
    )


def _block(spec: ModelSpec, modules: DeviceModules, core: Any, group: ProcessGroup) -> TransformerBlockSubmodules:
    column: Any = ColumnParallelLinear
    out: Any = BiasedProjection if spec.o_bias else RowParallelLinear
    down: Any = RowParallelLinear
    if group.size > 1:
        column = ModuleSpec(module=ColumnShard, params={"group": group})
        out, down = (ModuleSpec(module=RowShard, params={"group": group, "biased": b}) for b in (spec.o_bias, False))
    head: Any = ModuleSpec(module=modules.norm, params={"group": group}) if spec.qk_norm else None
    attention = ModuleSpec(
        module=modules.self_attention,
        submodules=SelfAttentionSubmodules(
            linear_qkv=column, core_attention=core, linear_proj=out, q_layernorm=head, k_layernorm=head
        ),
    )
    mlp = ModuleSpec(module=modules.mlp, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=down))
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=modules.layer_norm, self_attention=attention, pre_mlp_layernorm=modules.layer_norm, mlp=mlp
        ),
    )
    # A bare layer spec would bring the fused final norm, which no CPU has.
    return TransformerBlockSubmodules(layer_specs=[layer] * spec.num_layers, layer_norm=modules.norm)
