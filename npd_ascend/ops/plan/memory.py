"""What a stage needs of a device's memory, and the largest micro-batch that fits."""

from __future__ import annotations

from dataclasses import dataclass

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.plan.devices import Npu
from npd_ascend.ops.plan.flops import kv_bytes, weight_bytes

_RUNTIME = 4e9
"""Left to driver, runtime and workspace: an idle device already shows 3.4 GB in use."""
_UNITS = {"gb": 2**30, "gib": 2**30, "mb": 2**20, "mib": 2**20}


@dataclass(frozen=True)
class Memory:
    """Device memory of one stage.

    Attributes:
        fixed: bytes that do not depend on the micro-batch.
        a_row: bytes that one more row (training, annotating) or sequence (rollout) takes.
        budget: bytes that the stage may take.
        chosen: rows or sequences at once, as configured.
        knob: the setting that says how many.
    """

    fixed: float
    a_row: float
    budget: float
    chosen: int
    knob: str

    @property
    def needed(self) -> float:
        """Bytes at the configured size."""
        return self.fixed + self.chosen * self.a_row

    @property
    def largest(self) -> int:
        """Most rows or sequences that fit; 0 when not even one does."""
        return max(0, int((self.budget - self.fixed) // self.a_row))

    @property
    def fits(self) -> bool:
        """Whether the configured size fits."""
        return self.chosen <= self.largest


def max_device_memory(text: str) -> float:
    """Bytes of a size such as ``58GB``.

    Raises:
        UserError: not a size.
    """
    number = text.strip().lower()
    for unit, scale in _UNITS.items():
        if number.endswith(unit):
            try:
                return float(number.removesuffix(unit)) * scale
            except ValueError:
                break
    raise UserError(f"device.max_device_memory {text!r}: expected a size such as 58GB")


def rollout_memory(config: Config, spec: ModelSpec, npu: Npu, sequence: float) -> Memory:
    """vLLM: weights and the KV cache of the sequences at work, which have ``sequence`` tokens when they end."""
    tp = config.rollout.tensor_parallel
    mean_context = max(sequence, 1.0)
    fixed = weight_bytes(spec) / tp + _RUNTIME
    return Memory(
        fixed,
        kv_bytes(spec) / tp * mean_context,
        npu.memory * config.rollout.memory_fraction,
        config.rollout.max_num_seqs,
        "rollout.max_num_seqs",
    )


def annotate_memory(config: Config, spec: ModelSpec, npu: Npu, tensor_parallel: int | None = None) -> Memory:
    """Weights in bf16, one layer's activations of the rows at work, one chunk of logits in fp32 (three copies).

    Args:
        config: the run.
        spec: the model.
        npu: the device.
        tensor_parallel: devices over which the model is cut; None: ``annotate.tensor_parallel``.
    """
    a = config.annotate
    tp = tensor_parallel or a.tensor_parallel
    fixed = weight_bytes(spec) / tp + 3 * 4 * a.vocab_chunk_rows * spec.vocab_size / tp + _RUNTIME
    a_row = a.row_length * (_layer_activations(spec, tp) + 2 * 2 * spec.hidden_size)
    return Memory(fixed, a_row, _budget(config, npu), a.micro_batch, "annotate.micro_batch")


def train_memory(
    config: Config,
    spec: ModelSpec,
    npu: Npu,
    *,
    recompute: bool,
    tensor_parallel: int | None = None,
    sharding: bool | None = None,
    data_parallel: int | None = None,
    context_parallel: int | None = None,
) -> Memory:
    """fp32 weights, gradients (fresh and summed) and two moments; activations of all layers or, with recomputation, of
    one and the inputs of the others; chunked head and loss.

    Optimizer sharding leaves weights and fresh gradients whole, the layers' in bf16, and cuts fp32 weights, summed
    gradients and moments over the copies. Tensor parallelism cuts all of it, but no activation between the layers.
    Context parallelism cuts activations only; its ranks are copies like any others.

    Args:
        config: the run.
        spec: the student.
        npu: the device.
        recompute: activations are computed again in the backward pass.
        tensor_parallel, sharding, data_parallel, context_parallel: None: as in ``train``.
    """
    t, length, hidden = config.train, config.pack.row_length, spec.hidden_size
    tp, cp = tensor_parallel or t.tensor_parallel, context_parallel or t.context_parallel
    copies = cp * (data_parallel or t.data_parallel)
    table = spec.vocab_size * hidden
    tables = table * (1 if spec.tie_embeddings else 2)
    state = 5 * 4 * spec.parameters / tp
    if t.optimizer_sharding if sharding is None else sharding:
        state = (2 * (2 * (spec.parameters - tables) + 4 * tables) + 16 * spec.parameters / copies) / tp
    head = (4 * table + 3 * 4 * t.vocab_chunk_rows * spec.vocab_size) / tp
    layer = _layer_activations(spec, tp)
    kept = layer + 2 * hidden * spec.num_layers if recompute else layer * spec.num_layers
    kept += 4 * 2 * hidden  # the chunked loss keeps hidden states of the response positions and their gradients
    return Memory(state + head + _RUNTIME, length / cp * kept, _budget(config, npu), t.micro_batch, "train.micro_batch")


def _layer_activations(spec: ModelSpec, tensor_parallel: int) -> float:
    """Bytes a token that one layer keeps for its backward pass, bf16: inputs and outputs of norms, projections, flash
    attention and gated MLP. Heads and MLP columns are cut by tensor parallelism."""
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    heads = 2 * q + 2 * kv + (q + kv) * spec.qk_norm
    return 2.0 * (6 * spec.hidden_size + (heads + 3 * spec.intermediate_size) / tensor_parallel)


def _budget(config: Config, npu: Npu) -> float:
    return min(max_device_memory(config.device.max_device_memory), npu.memory)
