"""Peak memory of the fused chunked head + loss against the plain loss at openPangu's vocabulary, and their gradients.

    python benchmarks/loss_memory.py [--rows 1024] [--hidden 128] [--vocab 153376] [--chunk 64]

Run it with the interpreter of the MindSpore environment. Each loss runs in a fresh process, compiled, forward and
backward; its memory is the highest resident size of the process above that just before, with hidden states, head and
targets made. The plain loss is the same formula on all rows at once with the engine's automatic gradient. ``limit``
is what no method can save: the gradient of the head, of the hidden states, and one chunk of logits with its gradient.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def resident(key: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the highest so far), MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def one(kind: str, rows: int, width: int, vocab: int, chunk: int, out: Path) -> None:
    import mindspore as ms
    from mindspore import nn, ops

    from npd_ascend.config.job import Device
    from npd_ascend.config.schema import LossConfig
    from npd_ascend.models.network import setup_context
    from npd_ascend.objectives.chunked import ChunkedLoss
    from npd_ascend.objectives.support import on_support

    setup_context(Device())
    rng = np.random.default_rng(0)
    hidden = ms.Tensor(rng.standard_normal((rows, width), np.float32))
    head = ms.Tensor(rng.standard_normal((vocab, width), np.float32) * np.float32(0.1))
    labels = ms.Tensor(rng.integers(0, vocab, rows).astype(np.int32))
    ids = ms.Tensor(rng.integers(0, vocab, (rows, 10)).astype(np.int32))
    z = rng.standard_normal((rows, 10)).astype(np.float32)
    teacher = ms.Tensor(z - np.log(np.exp(z).sum(1, keepdims=True)) - np.float32(0.1))
    weights = ms.Tensor(np.full((rows, 2), 1 / rows, np.float32))

    class Plain(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.product = ops.MatMul(transpose_b=True)

        def construct(self, h, w, label, v, t, p):
            both = ops.concat((label.expand_dims(1), t), 1)
            seen = ops.gather_elements(ops.log_softmax(self.product(h, w), -1), 1, both)
            logp, logq = on_support("teacher", p, seen[:, 1:])
            kd = (ops.exp(logp) * (logp - logq)).sum(-1)
            return ((0.1 * -seen[:, 0] + 0.9 * kd) * v[:, 0]).sum()

    class First(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.loss = ChunkedLoss(LossConfig(), chunk)

        def construct(self, h, w, *inputs):
            return self.loss(h, w, inputs)[0]

    class Gradients(nn.Cell):
        def __init__(self, loss: nn.Cell) -> None:
            super().__init__()
            self.both = ms.value_and_grad(loss, (0, 1), None)

        def construct(self, h, w, *inputs):
            return self.both(h, w, *inputs)

    step = Gradients(Plain() if kind == "plain" else First())
    arrays = (hidden, head, labels, weights, ids, teacher)  # in the order of LossInputs
    small = tuple(a[:8] if a.shape[0] == rows else a[:256] for a in arrays[:2]) + (
        labels[:8] % 256,
        weights[:8],
        ids[:8] % 256,
        teacher[:8],
    )
    step(*small)[0].asnumpy()  # engine and kernels are in memory before the base is taken
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    base = resident("VmRSS")
    value, gradients = step(*arrays)
    loss = float(value.asnumpy())
    found = [g.asnumpy() for g in gradients]
    peak = resident("VmHWM")
    start = time.perf_counter()
    step(*arrays)[0].asnumpy()
    seconds = time.perf_counter() - start
    np.savez(out, hidden=found[0], head=found[1])
    print(json.dumps({"loss": loss, "mb": peak - base, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 1024), ("hidden", 128), ("vocab", 153_376), ("chunk", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        return one(a.one, a.rows, a.hidden, a.vocab, a.chunk, a.out)
    results, gradients = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("plain", "chunked"):
            out = Path(folder) / f"{kind}.npz"
            words = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", kind, "--out", out],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            results[kind] = json.loads(words.splitlines()[-1])
            gradients[kind] = dict(np.load(out))
    plain, ours = gradients["plain"], gradients["chunked"]
    difference = {n: float(np.abs(ours[n] - plain[n]).max() / np.abs(plain[n]).max()) for n in plain}
    limit = 4 * (a.vocab * a.hidden + a.rows * a.hidden + 2 * a.chunk * a.vocab) / 2**20
    print(
        json.dumps(
            {
                "benchmark": "loss_memory",
                "rows": a.rows,
                "hidden": a.hidden,
                "vocab": a.vocab,
                "chunk": a.chunk,
                "mb": {k: round(r["mb"]) for k, r in results.items()},
                "limit_mb": round(limit),
                "ratio": round(results["plain"]["mb"] / results["chunked"]["mb"], 2),
                "seconds": {k: round(r["seconds"], 2) for k, r in results.items()},
                "loss_difference": abs(results["chunked"]["loss"] / results["plain"]["loss"] - 1),
                "gradient_difference": difference,
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


if __name__ == "__main__":
    main()
