"""Training on packed rows against one sample a row, in the same trainer with the same positions a micro-batch.

    python benchmarks/packed_vs_padded.py [MODEL] [--rounds 5] [--steps 8]

Run it with the interpreter of the MindSpore environment. Samples have the lengths of the mini task. ``padded`` has
one sample a row, rows as long as the longest sample, as trainers without packing batch; ``sorted`` one sample a row
in three groups of similar length, each padded to its own longest (three graphs). Micro-batches hold about 2,048
positions each. Rounds alternate; figures are response tokens/s, medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from random_samples import Samples, mini_lengths

from npd_ascend.config.job import Device
from npd_ascend.config.schema import TrainConfig
from npd_ascend.models.network import build
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import load_hf
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.train.reader import Reader
from npd_ascend.train.step import Trainer

POSITIONS = 2048


def stepper(model: Path, samples: Samples, rows: list[np.ndarray], row_length: int) -> tuple[Callable[[], int], float]:
    """A function that takes one optimiser step and returns its response tokens; share of positions with tokens."""
    spec = ModelSpec.from_folder(model)
    micro = max(1, POSITIONS // row_length)
    plan = samples.plan(rows[: len(rows) // micro * micro])
    settings = TrainConfig(global_batch=micro, micro_batch=micro, vocab_chunk_rows=POSITIONS)
    reader = Reader(samples, [plan], samples, settings, row_length, 0, spec.vocab_size)  # type: ignore[arg-type]
    net = build(spec, Device(), row_length)
    load_hf(net, model)
    trainer = Trainer(net, settings, reader.chunk)
    batches = [next(reader.micro_batches(0, b)) for b in range(reader.steps[0])]
    done = [0]

    def step() -> int:
        batch = batches[done[0] % len(batches)]
        done[0] += 1
        trainer.accumulate(batch, batch.tokens)
        trainer.update(1e-4, done[0])
        return batch.tokens

    density = sum(b.rows.tokens for b in batches) / sum(b.rows.input_ids.size for b in batches)
    return step, density


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path(__file__).parents[1] / "assets/mini/student")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    samples = Samples(mini_lengths(1500), ModelSpec.from_folder(args.model).vocab_size)
    sizes = samples.sizes + samples.prompt_sizes
    bins = best_fit_decreasing(sizes, 512)
    order = np.argsort(sizes, kind="stable")
    ways = {
        "packed": [stepper(args.model, samples, [bins[i] for i in range(len(bins))], 512)],
        "padded": [stepper(args.model, samples, [np.array([i]) for i in range(len(sizes))], up(sizes.max()))],
        "sorted": [
            stepper(args.model, samples, [np.array([i]) for i in part], up(sizes[part].max()))
            for part in np.array_split(order, 3)
        ],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(args.rounds + 1):
        for name, steps in ways.items():
            start, tokens = time.perf_counter(), 0
            for n in range(args.steps):
                tokens += steps[n % len(steps)][0]()
            if i:  # the first round compiles
                rates[name].append(tokens / (time.perf_counter() - start))
    packed = np.array(rates["packed"])
    print(
        json.dumps(
            {
                "benchmark": "packed_vs_padded",
                "model": args.model.name,
                "lengths": {"mean": round(float(sizes.mean()), 1), "longest": int(sizes.max())},
                "response_tokens_per_s": {name: round(float(np.median(r))) for name, r in rates.items()},
                "density": {name: round(float(np.mean([d for _, d in s])), 3) for name, s in ways.items()},
                "packed / padded": round(float(np.median(packed / rates["padded"])), 2),
                "packed / sorted": round(float(np.median(packed / rates["sorted"])), 2),
                "rounds": args.rounds,
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


def up(n: int) -> int:
    return -(-int(n) // 16) * 16


if __name__ == "__main__":
    main()
