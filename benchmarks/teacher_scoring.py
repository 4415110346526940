"""Teacher log-probs of k tokens a position: packed prefill in one process against a generation engine that is asked.

    python benchmarks/teacher_scoring.py MODEL [--samples 400] [--k 10] [--batch 40] [--rounds 3]

Run it with the interpreter of the MindSpore environment; the engine's part runs in the rollout environment, as
``--part engine``. Samples are random, of the lengths of the mini maze (prompt 12, answer 2 to 32 tokens). Both models
are warm. The engine is asked for ``prompt_logprobs`` of whole batches, as a scoring server would be by a synchronous
loop, without the network in between; ``ratio`` is its time over that of the prefill, medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PROMPT = 12


def samples(n: int) -> list[np.ndarray]:
    """Token ids of prompts with answers."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 70, PROMPT + rng.integers(2, 33)).astype(np.int32) for _ in range(n)]


def engine(model: Path, n: int, k: int, batch: int, rounds: int) -> list[float]:
    """Seconds of each round in vLLM."""
    from npd_ascend.rollout.engine import set_environment

    set_environment("cpu")
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=64, enforce_eager=True,
              max_num_seqs=128, kv_cache_memory_bytes=2**30, gpu_memory_utilization=0.3, disable_log_stats=True,
              enable_chunked_prefill=False, max_num_batched_tokens=2048, enable_prefix_caching=False, max_logprobs=k)
    params = SamplingParams(max_tokens=1, prompt_logprobs=k, detokenize=False, temperature=0.0)
    texts = samples(n)
    out = []
    for _ in range(rounds + 1):
        start = time.monotonic()
        for at in range(0, n, batch):
            llm.generate([TokensPrompt(prompt_token_ids=t.tolist()) for t in texts[at : at + batch]], params,
                         use_tqdm=False)
        out.append(time.monotonic() - start)
    return out[1:]


def prefill(model: Path, n: int, k: int, rounds: int) -> list[float]:
    """Seconds of each round in packed rows of 128."""
    from npd_ascend.annotate.prefill import Scorer
    from npd_ascend.config.jobs import Device
    from npd_ascend.config.schema import AnnotateConfig
    from npd_ascend.models.spec import ModelSpec

    settings = AnnotateConfig(k=k, row_length=128, micro_batch=16)
    scorer = Scorer(model, ModelSpec.from_folder(model), settings, Device())
    texts = samples(n)
    out = []
    for _ in range(rounds + 1):
        start = time.monotonic()
        scorer.score([t[:PROMPT] for t in texts], [t[PROMPT:] for t in texts], k)
        out.append(time.monotonic() - start)
    return out[1:]


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batch", type=int, default=40, help="samples that the engine is asked for at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["all", "engine"], default="all")
    args = parser.parse_args()
    if args.part == "engine":
        print(json.dumps(engine(args.model, args.samples, args.k, args.batch, args.rounds)))
        return
    from npd_ascend.ops.environments import Environments

    command = [str(Environments.find().rollout), __file__, *sys.argv[1:], "--part", "engine"]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    ours = prefill(args.model, args.samples, args.k, args.rounds)
    tokens = sum(len(t) - PROMPT for t in samples(args.samples))
    print(json.dumps({"engine_seconds": theirs, "prefill_seconds": ours, "answer_tokens": tokens, "k": args.k,
                      "ratio": float(np.median(theirs) / np.median(ours)), "machine": platform.machine()}))


if __name__ == "__main__":
    main()
