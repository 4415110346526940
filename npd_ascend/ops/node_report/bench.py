"""What a node report measures in the MindSpore environment: ``python -m npd_ascend.ops.node_report.bench JOB.json``.

The job names the kind of measurement and the file to which rank 0 appends a JSON line for each: its ``name`` and
figures, or the ``error`` with which it ended. One that fails does not keep the others from being taken.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from npd_ascend.annotate.distribution import summarise
from npd_ascend.annotate.head import ChunkedHead, ChunkSummary
from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.models import tensorfile
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.models.kernels import AddAt
from npd_ascend.models.network import build
from npd_ascend.models.parallel.mesh import DeviceMesh
from npd_ascend.models.weights import load_hf
from npd_ascend.ops.ascend.child import trainer_of
from npd_ascend.ops.ascend.graphs import Graph
from npd_ascend.ops.node_report.lines import Lines, mean_seconds
from npd_ascend.ops.node_report.reference import hidden_states
from npd_ascend.rows.collate import RowBatch, collate

_TINY = {
    "model_type": "PanguEmbedded",
    "bias": True,
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LENGTHS = (7, 23, 1, 64, 12, 30)
_LIMIT = {"float32": 1e-4, "bfloat16": 0.03}
"""Of differences (in float32 the largest, in bfloat16 their root mean square) over the root mean square of what is
compared."""


def parity(job: dict[str, Any], mesh: DeviceMesh, lines: Lines) -> None:
    """Modules of the device table, on the device, against plain references in numpy."""
    device = Device.model_validate(job["device"])
    lines.take("packed rows through a network of two layers", lambda: _network(device))
    lines.take("scatter-add into logits", lambda: _scatter_add(device.dtype))
    lines.take("in-graph top-k, entropy and logZ of annotation", lambda: _summary(device.dtype))


def _network(device: Device) -> dict[str, Any]:
    """Embedding, rotary embedding, attention over segments, norms, SwiGLU: logits of packed samples."""
    row = 2048 if device.target == "ascend" else 256
    with tempfile.TemporaryDirectory(prefix="npd-parity-") as name:
        spec = initial_checkpoint(Path(name) / "m", _TINY, std=0.06, norm_std=0.1, bias_std=0.1)
        net = build(spec, device, row, params_dtype=device.dtype)
        load_hf(net, Path(name) / "m")
        weights = {n: e.read().astype(np.float64) for n, e in tensorfile.entries(Path(name) / "m").items()}
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in _LENGTHS]
    batch = collate([texts], row, spec.pad_token_id, 1, longest=row)
    hidden = net(*net.inputs(batch)).astype(ms.float32).asnumpy()
    head = weights["model.embed_tokens.weight"].T
    got = np.concatenate([hidden[a : a + n] for a, n in zip(batch.starts, batch.lengths, strict=True)]) @ head
    return _compared(got, np.concatenate([hidden_states(spec, weights, t) for t in texts]) @ head, device.dtype)


def _scatter_add(dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    x, index = rng.standard_normal((64, 4096), np.float32), rng.integers(0, 4096, (64, 11)).astype(np.int32)
    index[:, 1] = index[:, 0]  # equal columns add up
    values = rng.standard_normal((64, 11), np.float32)
    got = AddAt()(ms.Tensor(x), ms.Tensor(index), ms.Tensor(values)).asnumpy()
    want = x.astype(np.float64)
    np.add.at(want, (np.arange(64)[:, None], index), values)
    return _compared(got, want, "float32")


def _summary(dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    hidden, weight = rng.standard_normal((32, 64), np.float32), rng.standard_normal((5000, 64), np.float32)
    targets, at = rng.integers(0, 4990, 32).astype(np.int32), np.arange(32, dtype=np.int32)
    cell = ChunkSummary(10, vocabulary=4990)
    logz, sampled, entropy, logprobs, ids = (x.asnumpy() for x in cell(*map(ms.Tensor, (hidden, at, weight, targets))))
    want = summarise((hidden @ weight.T)[:, :4990], targets, 10)
    out = _compared(
        np.concatenate([logz, sampled, entropy, logprobs.ravel()]),
        np.concatenate([want.logz, want.sampled, want.entropy, want.logprobs.ravel()]),
        dtype,  # the device may multiply float32 in fewer bits
    )
    return out | {"equal_ids": float((ids == want.ids).mean())}


def _compared(got: Array, want: Array, dtype: str) -> dict[str, Any]:
    scale, gaps = float(np.sqrt(np.square(want, dtype=np.float64).mean())), np.abs(got - want)
    gap = float(gaps.max() if dtype == "float32" else np.sqrt(np.square(gaps).mean())) / scale
    return {"value": gap if np.isfinite(gap) else float("inf"), "limit": _LIMIT[dtype]}


def annotate(job: dict[str, Any], mesh: DeviceMesh, lines: Lines) -> None:
    """A row of samples through network and head, at each row length."""
    for graph in (Graph(**g) for g in job["graphs"]):
        lines.take(f"{graph.stage}, rows of {graph.row_length:,}", lambda g=graph: _annotate(g, job, mesh))  # type: ignore[misc]
        gc.collect()  # cells hold each other, and with them the memory of the device


def _annotate(graph: Graph, job: dict[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    s, device = graph.settings, Device.model_validate(graph.device)
    net = build(graph.spec, device, graph.row_length, params_dtype=device.dtype, group=mesh.model)
    begun = time.perf_counter()
    if (folder := _checkpoint(job, graph)) is not None:
        load_hf(net, folder)
    loaded = time.perf_counter() - begun
    head = ChunkedHead(
        net.head_weight,
        min(s["vocab_chunk_rows"], s["micro_batch"] * graph.row_length),
        on_host=device.target == "cpu",
        group=mesh.model,
        vocabulary=graph.vocabulary,
    )
    batch = _full(graph, s["micro_batch"], job["sample"])
    at = np.arange(batch.tokens, dtype=np.int32)

    def work() -> None:
        head(net(*net.inputs(batch)), at, at * 0, s["k"])

    begun = time.perf_counter()
    work()
    first = time.perf_counter() - begun
    seconds = mean_seconds(work)
    return _rate(graph, batch, batch.tokens, seconds) | {"start": loaded + max(0.0, first - seconds)}


def train(job: dict[str, Any], mesh: DeviceMesh, lines: Lines) -> None:
    """Optimizer steps in the configured layout, at each row length."""
    for graph in (Graph(**g) for g in job["graphs"]):
        lines.take(f"train, rows of {graph.row_length:,}", lambda g=graph: _train(g, job, mesh))  # type: ignore[misc]
        gc.collect()


def _train(graph: Graph, job: dict[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    begun = time.perf_counter()
    batch = _full(graph, graph.settings["micro_batch"], job["sample"])
    trainer, given = trainer_of(graph, mesh, batch, _checkpoint(job, graph))

    def step() -> None:
        for _ in range(job["micro_batches"]):
            trainer.accumulate(given, given.tokens)
        trainer.update(1e-6, 1)

    step()
    first = time.perf_counter() - begun
    seconds = mean_seconds(step)
    tokens = batch.tokens * job["micro_batches"] * graph.settings["data_parallel"]
    return _rate(graph, batch, tokens, seconds) | {"start": max(0.0, first - seconds)}


def _checkpoint(job: dict[str, Any], graph: Graph) -> Path | None:
    """That of the graph's model, where it is there; zeros do as well for its time."""
    folder = Path(job["models"]["teacher" if "teacher" in graph.stage else "student"])
    return folder if folder.exists() else None


def _full(graph: Graph, rows: int, sample: int) -> RowBatch:
    """Rows that are full of samples of a length."""
    length = min(sample, graph.row_length)
    rng = np.random.default_rng(0)
    ids = [[rng.integers(0, graph.vocabulary, length).astype(np.int32)] * (graph.row_length // length)] * rows
    return collate(ids, graph.row_length, graph.spec.pad_token_id, rows, longest=length)


def _rate(graph: Graph, batch: RowBatch, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "stage": graph.stage,
        "row_length": graph.row_length,
        "sample": int(batch.lengths[0]),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "ranks": graph.size,
    }


def main() -> None:
    """Takes the measurements of a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    kinds = {"parity": parity, "annotate": annotate, "train": train}
    mesh = DeviceMesh(Device.model_validate(job["device"]), *job.get("cuts", ()))
    if not mesh.schedules:
        kinds[job["kind"]](job, mesh, Lines(Path(job["lines"]) if mesh.leads else None))


if __name__ == "__main__":
    main()
