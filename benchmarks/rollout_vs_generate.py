"""Tokens/s of the rollout worker's loop against bare ``LLM.generate`` on the same requests, in one engine.

    python benchmarks/rollout_vs_generate.py MODEL [--prompts 512] [--tokens 128] [--rounds 3]

Run it with the interpreter of the rollout environment. The worker's time includes reading prompts, seeds, journal,
Parquet shards and the manifest. The limit is 1.0: both drive the same engine. Rounds alternate between the two;
``ratio`` is the median over rounds of their wall-clock ratio, ``cpu_ratio`` the same of tokens per second of CPU
time, which other load on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from npd_ascend.config.job import Device
from npd_ascend.config.schema import RolloutConfig
from npd_ascend.rollout.engine import Engine
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.requests import requests_of
from npd_ascend.rollout.stage import work
from npd_ascend.store.dataset import Dataset


def make_prompts(folder: Path, n: int, shard: int, vocab: int) -> None:
    """Random prompts of 8 to 64 tokens."""
    rng = np.random.default_rng(0)
    dataset = Dataset(folder, "prompts", "benchmark")
    for i, start in enumerate(range(0, n, shard)):
        ids = [rng.integers(5, vocab, rng.integers(8, 65)).tolist() for _ in range(min(shard, n - start))]
        index = list(range(start, start + len(ids)))
        empty = pa.nulls(len(ids), pa.list_(pa.int32()))
        text = pa.nulls(len(ids), pa.string())
        dataset.write_table(
            i,
            pa.table(
                {
                    "prompt_index": index,
                    "prompt_id": index,
                    "prompt_ids": ids,
                    "reference_ids": empty,
                    "label_ids": empty,
                    "answer": text,
                    "text": text,
                }
            ),
        )
    dataset.finish(-(-n // shard))


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--shard", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    vocab = json.loads((args.model / "config.json").read_text())["vocab_size"]
    root = Path(tempfile.mkdtemp())
    make_prompts(root / "prompts", args.prompts, args.shard, vocab)
    job = RolloutJob(
        out=root / "out",
        fingerprint="benchmark",
        prompts=root / "prompts",
        model=args.model,
        generation=0,
        seed=0,
        settings=RolloutConfig(max_new_tokens=args.tokens, samples=args.samples, max_num_seqs=args.max_num_seqs),
        device=Device(dtype=args.dtype),
        max_model_len=64 + args.tokens,
        eos_token_ids=[],
        vocabulary=vocab,
    )
    engine = Engine(job)
    rates: dict[str, list[tuple[float, float]]] = {"generate": [], "worker": []}
    for _ in range(args.rounds + 1):
        for name, run in (("generate", bare), ("worker", worker)):
            start, cpu = time.perf_counter(), time.process_time()
            tokens = run(engine, job)
            rates[name].append((tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu)))
    shutil.rmtree(root)
    generate, ours = (np.array(rates[name][1:]) for name in ("generate", "worker"))  # the first round warms up
    ratio, cpu_ratio = np.median(ours / generate, axis=0)
    print(
        json.dumps(
            {
                "benchmark": "rollout_vs_generate",
                "model": args.model.name,
                "dtype": args.dtype,
                "prompts": args.prompts,
                "paths": 1 + args.samples,
                "tokens": args.tokens,
                "max_num_seqs": args.max_num_seqs,
                "generate_tokens_per_s": round(generate[:, 0].max()),
                "worker_tokens_per_s": round(ours[:, 0].max()),
                "ratio": round(ratio, 3),
                "cpu_ratio": round(cpu_ratio, 3),
                "limit": 1.0,
                "cores": len(os.sched_getaffinity(0)),
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


def bare(engine: Engine, job: RolloutJob) -> int:
    """All requests at once through ``LLM.generate``; tokens generated."""
    from vllm.inputs import TokensPrompt

    source = Dataset.open(job.prompts, "prompts")
    requests = [r for i in range(source.shards) for r in requests_of(job, i, source.read(i))]
    outputs = engine.llm.generate(
        [TokensPrompt(prompt_token_ids=r.prompt_ids) for r in requests],
        [engine.params(job, r) for r in requests],
        use_tqdm=False,
    )
    return sum(len(o.outputs[0].token_ids) for o in outputs)


def worker(engine: Engine, job: RolloutJob) -> int:
    """The same through the worker's loop, up to the committed dataset."""
    shutil.rmtree(job.out, ignore_errors=True)
    work(job, engine, lambda **counts: None)
    return Dataset.open(job.out, "rollouts").extra["tokens"]


if __name__ == "__main__":
    main()
