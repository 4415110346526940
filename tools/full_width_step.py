"""One step of training at openPangu-Embedded-1B's full width: whether it compiles, how long it takes, how much memory.

    python tools/full_width_step.py                  half the depth, 13 layers
    python tools/full_width_step.py --layers 26      the whole model

Run it with the MindSpore environment's interpreter. Prints the time of each part, the loss, and peak memory a
parameter; of that, 16 bytes are weights, summed gradients and two moments in float32. Fails when the loss is not
finite, or when the step leaves a parameter as it was.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.shapes import known_shapes
from npd_ascend.models.spec import ModelSpec

MODEL = "openPangu-Embedded-1B"
ROW, K = 128, 10


@contextmanager
def part(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{name:<44} {time.perf_counter() - start:7.1f} s   peak so far {peak() / 1e9:5.2f} GB", flush=True)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=13)
    args = parser.parse_args()
    spec = ModelSpec.from_config({**known_shapes()[MODEL], "num_hidden_layers": args.layers}, {}, MODEL)
    print(f"{args.layers} layers, {spec.parameters / 1e9:.3f} billion parameters")
    with part("import MindSpore and MindFormers"):
        import mindspore as ms

        from npd_ascend.config.job import Device
        from npd_ascend.models.network import build
        from npd_ascend.objectives.inputs import LossInputs
        from npd_ascend.rows.collate import collate
        from npd_ascend.train.reader import MicroBatch
        from npd_ascend.train.step import Trainer
    rng = np.random.default_rng(0)
    with part("build the network (float32), random weights"):
        net = build(spec, Device(), ROW)
        for p in net.trainable_params():
            value = rng.standard_normal(p.shape, np.float32)
            p.set_data(ms.Tensor(1 + 0.1 * value if "norm" in p.name else 0.02 * value))
    with part("optimiser state"):
        trainer = Trainer(net, TrainConfig(lr=1e-4, global_batch=1, recompute=True), 64)
        net.recompute_layers()
    text = rng.integers(0, spec.vocab_size, ROW).astype(np.int32)
    rows = collate([[text]], ROW, spec.pad_token_id, 1)
    at = np.arange(ROW // 2, ROW - 1, dtype=np.int32)
    inputs = LossInputs(
        labels=text[at + 1],
        weights=np.ones((len(at), 2), np.float32),
        teacher_ids=rng.integers(0, spec.vocab_size, (len(at), K)).astype(np.int32),
        teacher_logprobs=np.full((len(at), K), np.log(0.9 / K), np.float32),
    )
    batch = MicroBatch(rows, at, inputs, len(at), np.zeros(1, np.int64))
    probes = [p for p in net.trainable_params() if p.ndim == 1 or p.size < 3e6]
    before = {p.name: p.asnumpy().copy() for p in probes}
    with part("forward and backward pass, compiled"):
        loss = trainer.accumulate(batch, len(at)) / len(at)
    with part("the same again"):
        trainer.accumulate(batch, len(at))
    with part("optimiser step, compiled"):
        norm, _ = trainer.update(1e-4, 1)
    with part("the same again"):
        trainer.update(1e-4, 2)
    print(
        f"loss {loss:.3f} nats a token, gradient norm {norm:.3f}; peak {peak() / 1e9:.2f} GB, "
        f"{peak() / spec.parameters:.1f} bytes a parameter"
    )
    same = [p.name for p in probes if np.array_equal(p.asnumpy(), before[p.name])]
    if not np.isfinite([loss, norm]).all() or same:
        raise SystemExit(f"failed: loss {loss}, norm {norm}; unchanged: {same[:5]}")


if __name__ == "__main__":
    main()
