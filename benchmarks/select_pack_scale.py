"""Select and pack at the size of a real run: seconds and peak memory of each stage, from dataset to dataset.

    python benchmarks/select_pack_scale.py [--samples 120000] [--epochs 2] [--tokens constant|random] [--folder DIR]

Rollouts and scores are synthetic: log-normal lengths (median 346 tokens), Δ-IFD with the paper's zones (96 % kept).
With ``random`` tokens the rollouts have the size on disk of real ones (some 8 bytes a token, all of which a reader
must hash to trust a shard); ``constant`` tokens compress to nothing, so that what is timed is the stage itself.
Every stage runs in a process of its own; memory is the peak resident size of that process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from npd_ascend.config.schema import PackConfig, SelectConfig
from npd_ascend.pack.job import PackJob
from npd_ascend.select.job import SelectJob
from npd_ascend.select.registry import IFD
from npd_ascend.store.dataset import Dataset

SHARD = 2048
ROW_LENGTH, GROUP = 32768, 64


def ragged(lengths: np.ndarray, values: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def make(folder: Path, samples: int, tokens: str) -> None:
    """Prompts, rollouts and both models' scores."""
    rng = np.random.default_rng(0)
    shards = -(-samples // SHARD)
    sets = {
        k: Dataset(folder / k, kind, k)
        for k, kind in (("prompts", "prompts"), ("rollouts", "rollouts"), *((name, "scores") for name in IFD))
    }
    for shard in range(shards):
        index = np.arange(shard * SHARD, min(samples, (shard + 1) * SHARD))
        n, ids = len(index), index * 7 + 1
        lengths = np.clip(346 * np.exp(0.9 * rng.standard_normal(n)), 1, 16384).astype(np.int64)
        total = int(lengths.sum())
        known = rng.integers(0, 153_376, total) if tokens == "random" else np.ones(total)
        logprobs = -rng.exponential(0.3, total) if tokens == "random" else np.zeros(total)
        prompt = rng.integers(20, 400, n)
        sets["prompts"].write_table(
            shard,
            pa.table(
                {
                    "prompt_index": index,
                    "prompt_id": ids,
                    "prompt_ids": ragged(prompt, np.ones(prompt.sum(), np.int32)),
                    "reference_ids": pa.nulls(n, pa.list_(pa.int32())),
                    "label_ids": pa.nulls(n, pa.list_(pa.int32())),
                    "answer": pa.nulls(n, pa.string()),
                    "text": pa.nulls(n, pa.string()),
                }
            ),
        )
        sets["rollouts"].write_table(
            shard,
            pa.table(
                {
                    "sample_id": ids,
                    "prompt_index": index,
                    "path": np.zeros(n, np.int8),
                    "response_ids": ragged(lengths, known.astype(np.int32)),
                    "logprobs": ragged(lengths, logprobs.astype(np.float32)),
                    "label_ids": pa.nulls(n, pa.list_(pa.int32())),
                    "finish_reason": pa.array(np.where(lengths > 4096, "length", "stop")).dictionary_encode(),
                }
            ),
        )
        student = rng.uniform(0.3, 0.6, n)
        for model, ifd in (("student", student), ("teacher", student + rng.normal(0.35, 0.18, n))):
            uncond = rng.uniform(0.5, 3, n)
            for name, nll in ((f"scores_{model}", ifd * uncond), (f"unconditioned_{model}", uncond)):
                columns = {"sample_id": ids, "tokens": lengths, "nll": nll, "entropy": np.zeros(n, np.float32)}
                sets[name].write_table(shard, pa.table(columns))
    for dataset in sets.values():
        dataset.finish(shards)


def select(folder: Path) -> None:
    from npd_ascend.select.stage import run

    run(
        SelectJob(
            out=folder / "selection",
            fingerprint="s",
            rollouts=folder / "rollouts",
            settings=SelectConfig(),
            quantities={name: folder / name for name in IFD},
        )
    )


def pack(folder: Path, epochs: int) -> None:
    from npd_ascend.pack.stage import run

    run(
        PackJob(
            out=folder / "packs",
            fingerprint="p",
            prompts=folder / "prompts",
            rollouts=folder / "rollouts",
            selection=folder / "selection",
            epochs=epochs,
            first_epoch_seed=0,
            group=GROUP,
            settings=PackConfig(row_length=ROW_LENGTH),
        )
    )


def timed(function, *args) -> tuple[float, float]:
    """Seconds and peak resident MB of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_timed, args=(queue, function, args))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
    return queue.get()


def _timed(queue, function, args) -> None:
    start = time.perf_counter()
    function(*args)
    queue.put((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=120_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tokens", choices=("constant", "random"), default="constant")
    parser.add_argument("--folder", type=Path, help="where the datasets are made; a temporary folder by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        made = timed(make, folder, args.samples, args.tokens)
        chosen = timed(select, folder)
        packed = timed(pack, folder, args.epochs)
        size = sum(p.stat().st_size for p in (folder / "rollouts").iterdir())
        zones = Dataset.open(folder / "selection", "selection").extra
        plan = Dataset.open(folder / "packs", "packs").extra
        print(
            f"| {args.samples:,} samples, {args.tokens} tokens, rollouts {size / 1e6:,.0f} MB | seconds "
            f"| us a sample | peak MB |\n|---|---|---|---|"
        )
        for name, (seconds, mb) in (
            ("make (not part of it)", made),
            ("select", chosen),
            (f"pack, {args.epochs} epochs", packed),
        ):
            print(f"| {name} | {seconds:.2f} | {seconds / args.samples * 1e6:.2f} | {mb:,.0f} |")
        print(
            f"kept {zones['keep_rate']:.1%}; {plan['rows']:,} rows, density {plan['density']:.3%}, "
            f"imbalance {plan['imbalance']:.3%}, worst batch {plan['imbalance_worst_batch']:.2%}"
        )


if __name__ == "__main__":
    main()
