"""Teacher log-probs of k tokens a position: packed prefill against a generation engine and a scoring server.

    python benchmarks/teacher_scoring.py MODEL [--samples 400] [--k 10] [--batch 40] [--rounds 3]

Run it with the interpreter of the MindSpore environment; engine and server run in the rollout environment. Samples
are random, of the lengths of the mini maze (prompt 12, answer 2 to 32 tokens). All are warm. ``engine`` is asked for
``prompt_logprobs`` of whole batches in its own process; ``server`` is vLLM's OpenAI-compatible one, asked for the same
over HTTP on this machine, one request a batch, answers parsed: how trainers ask a teacher that is served. ``ratios``
are their times over that of the prefill, medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.request
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

    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        max_num_seqs=128,
        kv_cache_memory_bytes=2**30,
        gpu_memory_utilization=0.3,
        disable_log_stats=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        max_logprobs=k,
    )
    params = SamplingParams(max_tokens=1, prompt_logprobs=k, detokenize=False, temperature=0.0)
    texts = samples(n)
    out = []
    for _ in range(rounds + 1):
        start = time.monotonic()
        for at in range(0, n, batch):
            llm.generate(
                [TokensPrompt(prompt_token_ids=t.tolist()) for t in texts[at : at + batch]], params, use_tqdm=False
            )
        out.append(time.monotonic() - start)
    return out[1:]


def server(model: Path, n: int, k: int, batch: int, rounds: int) -> list[float]:
    """Seconds of each round over HTTP."""
    from npd_ascend.ops.nodes import free_port
    from npd_ascend.rollout.engine import set_environment

    set_environment("cpu")
    port = free_port()
    options = {
        "model": model,
        "served-model-name": "teacher",
        "dtype": "float32",
        "max-model-len": 64,
        "max-num-seqs": 128,
        "max-num-batched-tokens": 2048,
        "kv-cache-memory-bytes": 2**30,
        "gpu-memory-utilization": 0.3,
        "max-logprobs": k,
        "host": "127.0.0.1",
        "port": port,
    }
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        *(str(x) for name, value in options.items() for x in (f"--{name}", value)),
    ]
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health", process)
        texts = samples(n)
        out = []
        for _ in range(rounds + 1):
            start = time.monotonic()
            for at in range(0, n, batch):
                ids = [t.tolist() for t in texts[at : at + batch]]
                body = {"model": "teacher", "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": k}
                request = urllib.request.Request(
                    f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request) as response:
                    found = json.load(response)["choices"]
                if [len(c["prompt_logprobs"]) for c in found] != [len(i) for i in ids]:
                    raise SystemExit("the server left positions out")
            out.append(time.monotonic() - start)
        return out[1:]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when the server answers."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server ended; see its words above")
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.5)
    raise SystemExit(f"{url}: no answer in five minutes")


def prefill(model: Path, n: int, k: int, rounds: int) -> list[float]:
    """Seconds of each round in packed rows of 128."""
    from npd_ascend.annotate.prefill import Scorer
    from npd_ascend.config.job import Device
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
    parser.add_argument("--part", choices=["all", *PARTS], default="all")
    args = parser.parse_args()
    if args.part != "all":
        print(json.dumps(PARTS[args.part](args.model, args.samples, args.k, args.batch, args.rounds)))
        return
    from npd_ascend.environments import Environments

    seconds = {}
    for part in PARTS:
        command = [str(Environments.find().rollout), __file__, *sys.argv[1:], "--part", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds[part] = json.loads(done.stdout.splitlines()[-1])
    ours = prefill(args.model, args.samples, args.k, args.rounds)
    tokens = sum(map(len, samples(args.samples)))
    print(
        json.dumps(
            {
                "seconds": {**seconds, "prefill": ours},
                "tokens": tokens,
                "k": args.k,
                "ratios": {part: round(float(np.median(s) / np.median(ours)), 2) for part, s in seconds.items()},
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


PARTS = {"engine": engine, "server": server}


if __name__ == "__main__":
    main()
