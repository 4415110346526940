"""Flash against dense attention, bfloat16 against float32, top-k both ways, on an NPU.

``python -m npd_ascend.ops.numerics JOB.json`` runs in the MindSpore environment. One set of weights, three
networks: dense attention in float32 is the reference, dense in bfloat16 shows what the type costs, flash in bfloat16
what the kernel adds. Annotation's top-k is timed with the operator that it uses and with the legacy one. Has not run
on an NPU yet.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.config.schema import AnnotateConfig
from npd_ascend.models.spec import ModelSpec
from npd_ascend.ops.selftest import TOLERANCE, announce, distance, sequences


def logits(
    spec: ModelSpec, folder: Path, modules: str, dtype: Literal["float32", "bfloat16"], device: Device, row_length: int
) -> list[Array]:
    """Logits of the test's sequences in one packed row, each [length, V] float32, with the leaf modules of a device."""
    import mindspore as ms

    from npd_ascend.models.device_modules import DEVICE_MODULES
    from npd_ascend.models.network import CausalLM, setup_context
    from npd_ascend.models.weights import load_hf
    from npd_ascend.rows.collate import collate

    setup_context(device)
    net: Any = CausalLM(spec, DEVICE_MODULES[modules], row_length, dtype, dtype).set_train(False)
    load_hf(net, folder)
    # Samples announced as long as the row: dense attention then masks whole rows, without windows.
    batch = collate([sequences(spec.vocab_size)], row_length, spec.pad_token_id, 1, longest=row_length)
    hidden = net(*net.inputs(batch)).astype(ms.float32).asnumpy()
    head = net.head_weight.float().asnumpy()
    return [hidden[a : a + n] @ head.T for a, n in zip(batch.starts, batch.lengths, strict=True)]


def timed_top_k(rows: int, vocabulary: int, k: int, *, ascend: bool, calls: int = 10) -> tuple[float, Array]:
    """Seconds a call of annotation's top-k on a chunk of logits, and the values [rows, k] of a first call.

    Args:
        rows, vocabulary: shape of the logits.
        k: how many are wanted.
        ascend: ``mint.topk``; else the legacy operator, which the CPU has as well.
        calls: that are timed.
    """
    import mindspore as ms

    from npd_ascend.models.kernels import Largest

    cell: Any = Largest(ascend)
    x = ms.Tensor(np.random.default_rng(0).standard_normal((rows, vocabulary), np.float32))
    values: Array = cell(x, k)[0].asnumpy()  # compiles as well
    start = time.perf_counter()
    for _ in range(calls):
        out = cell(x, k)
    out[0].asnumpy()
    return (time.perf_counter() - start) / calls, values


def main() -> None:
    """Prints a result line for each comparison, as ``selftest`` does."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, row = Path(job["student"]), job["row_length"]
    spec = ModelSpec.from_folder(folder)
    device = Device(target="ascend", dtype="bfloat16", max_device_memory=job["max_device_memory"])
    announce("float32 on the NPU")
    exact = logits(spec, folder, "cpu", "float32", device, row)
    announce("bfloat16, dense attention")
    dense = logits(spec, folder, "cpu", "bfloat16", device, row)
    announce("bfloat16, flash attention")
    flash = logits(spec, folder, "ascend", "bfloat16", device, row)
    for name, a, b in (("bfloat16 and float32 agree", dense, exact), ("flash and dense attention agree", flash, dense)):
        gap = max(distance(x - y, "bfloat16") for x, y in zip(a, b, strict=True))
        print(json.dumps({"name": name, "value": gap, "limit": TOLERANCE["bfloat16"]}), flush=True)
    announce("top-k, both operators")
    rows, k = AnnotateConfig().vocab_chunk_rows, AnnotateConfig().k
    (new, found), (old, expected) = (timed_top_k(rows, spec.vocab_size, k, ascend=form) for form in (True, False))
    name = (
        f"mint.topk ({new * 1e3:.2f} ms) and legacy TopK ({old * 1e3:.2f} ms) agree on {rows:,} rows of "
        f"{spec.vocab_size:,}"
    )
    print(json.dumps({"name": name, "value": float(np.abs(found - expected).max()), "limit": 0.0}), flush=True)


if __name__ == "__main__":
    main()
