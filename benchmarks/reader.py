"""Micro-batches from disk: response tokens a second that the training reader makes, on one core.

    python benchmarks/reader.py [--tokens 1000000] [--repeats 3]

Synthetic samples (see benchmarks/store.py) go through the real store, select's and pack's formats, and are read as
training reads them: packed rows, labels, the teacher's ids and log-probs from compressed top-k shards, weights. The
files are in the page cache. "CRC" is what checking the blocks alone takes, the part that no decoder can avoid.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from select_pack_scale import ragged
from store import VOCAB, K, annotation, sample_lengths, split

from npd_ascend.config.schema import TrainConfig
from npd_ascend.rows.bfd import best_fit_decreasing
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_codec import TopKFormat
from npd_ascend.store.topk_shard import TopKReader, write_topk
from npd_ascend.train.corpus import Corpus, EpochPlan
from npd_ascend.train.reader import Reader

ROW, SHARD = 32768, 2048


def make(root: Path, tokens: int, kind: str) -> None:
    """One generation's datasets, as training reads them."""
    rng = np.random.default_rng(0)
    lengths = sample_lengths(rng, tokens, kind)
    n = len(lengths)
    prompt = rng.integers(20, 200, n)
    samples = split(annotation(rng, int(lengths.sum())), lengths)
    sets = {k: Dataset(root / k, k, k) for k in ("prompts", "rollouts", "selection", "topk")}
    shards = -(-n // SHARD)
    for s in range(shards):
        rows = slice(s * SHARD, min(n, (s + 1) * SHARD))
        index, size = np.arange(rows.start, rows.stop), lengths[rows]
        null = pa.nulls(len(index), pa.list_(pa.int32()))
        no_text = pa.nulls(len(index), pa.string())
        sets["prompts"].write_table(
            s,
            pa.table(
                {
                    "prompt_index": index,
                    "prompt_id": index,
                    "reference_ids": null,
                    "label_ids": null,
                    "answer": no_text,
                    "text": no_text,
                    "prompt_ids": ragged(prompt[rows], rng.integers(0, VOCAB, prompt[rows].sum(), np.int32)),
                }
            ),
        )
        total = int(size.sum())
        sets["rollouts"].write_table(
            s,
            pa.table(
                {
                    "sample_id": index,
                    "prompt_index": index,
                    "path": np.zeros(len(index)),
                    "label_ids": null,
                    "response_ids": ragged(size, rng.integers(0, VOCAB, total, np.int32)),
                    "logprobs": ragged(size, -rng.exponential(0.3, total).astype(np.float32)),
                    "finish_reason": ["stop"] * len(index),
                }
            ),
        )
        zeros = np.zeros(len(index))
        sets["selection"].write_table(
            s,
            pa.table(
                {
                    "sample_id": index,
                    "keep": np.ones(len(index), bool),
                    "reason": ["kept"] * len(index),
                    "zone": ["proximal"] * len(index),
                    "weight": np.ones(len(index)),
                    "metric": zeros,
                    "ifd_teacher": zeros,
                    "ifd_student": zeros,
                    "delta_ifd": zeros,
                }
            ),
        )
        write_topk(sets["topk"], s, TopKFormat(K, VOCAB), samples[rows])
    for d in sets.values():
        d.finish(shards)
    bins = best_fit_decreasing(prompt + lengths, ROW)
    packs = Dataset(root / "packs", "packs", "packs")
    packs.write_table(
        0,
        pa.table(
            {
                name: pa.ListArray.from_arrays(pa.array(bins.offsets, pa.int32()), pa.array(values[bins.order]))
                for name, values in (("samples", np.arange(n)), ("prompt_tokens", prompt), ("response_tokens", lengths))
            }
        ),
    )
    packs.finish(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"rows of {ROW:,}, V = {VOCAB:,}, k = {K}, one core; response tokens a second, best of {args.repeats}")
    print(
        "| samples | token weight | tokens/s | rows alone, tokens/s | top-k alone, tokens/s | CRC, tokens/s |"
        "\n|---|---|---|---|---|---|"
    )
    for kind in ("short", "long"):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make(root, args.tokens, kind)
            corpus = Corpus(
                *(Dataset.open(root / k, k) for k in ("prompts", "rollouts", "selection")), {"rollout_logprobs"}
            )
            plans = [EpochPlan.read(Dataset.open(root / "packs", "packs"), 0)]
            topk = TopKReader(Dataset.open(root / "topk", "topk"))

            def speed(work) -> float:
                seconds = []
                for _ in range(args.repeats):
                    start = time.perf_counter()
                    work()
                    seconds.append(time.perf_counter() - start)
                return plans[0].response_tokens.sum() / min(seconds)  # noqa: B023

            def read(weight: str, teacher: TopKReader | None) -> None:
                loss = {"token_weight": weight, "kd_weight": 0.9 if teacher else 0.0}
                s = TrainConfig(global_batch=4, micro_batch=1, loss=loss)  # type: ignore[arg-type]
                r = Reader(corpus, plans, teacher, s, ROW, 0, VOCAB)  # noqa: B023
                for batch in range(r.steps[0]):
                    for _ in r.micro_batches(0, batch):
                        pass

            def decode() -> None:
                p = plans[0]  # noqa: B023
                for a, b in zip(p.first[:-1], p.first[1:], strict=True):
                    topk.read_many(p.samples[a:b], extras=False)  # noqa: B023

            blocks = [path.read_bytes() for path in (root / "topk").glob("*.topk")]
            crc = speed(lambda: [zlib.crc32(b) for b in blocks])  # noqa: B023
            rows, alone = speed(lambda: read("none", None)), speed(decode)  # noqa: B023
            for weight in ("none", "teacher_confidence", "surprisal_gate", "position_decay"):
                made = speed(lambda: read(weight, topk))  # noqa: B023
                print(f"| {kind} | {weight} | {made:,.0f} | {rows:,.0f} | {alone:,.0f} | {crc:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
