"""Annotation (top-10, logZ, entropy) against vLLM's ``prompt_logprobs`` and against the bare forward pass.

    python benchmarks/annotate_vs_prompt_logprobs.py [MODEL] [--samples 400] [--rounds 5] [--own]

Run it with the interpreter of the MindSpore environment. All sides see the same sequences, with the lengths of the
mini task, and count all their tokens. ``forward`` is the same compiled network on the same packed rows, made
beforehand, up to the hidden states: no head, no top-k, no packing; ``forward_head`` adds the product with the output
projection at the response positions, logits left in the engine. ``score`` is everything, from lists of ids to lists
of annotations. vLLM computes prompt_logprobs of all positions and one token more, which is the least it can. Rounds
alternate; figures are medians, and ``cpu`` ratios those of CPU time, which other work on the machine disturbs less.
``--own`` leaves vLLM out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from rounds import ROOT, Side, interpreter, serve

ROW, ROWS, K = 512, 4, 10


def sequences(n: int, vocab: int, long: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Contexts and responses; ``long`` times the mini task's lengths."""
    walks = (ROOT / "assets/mini/sft_student.jsonl").read_text().splitlines()
    sizes = np.resize([long * (len(json.loads(line)["response"].split()) + 1) for line in walks], n)
    rng = np.random.default_rng(0)
    return (
        [rng.integers(5, vocab, 14).astype(np.int32) for _ in sizes],
        [rng.integers(5, vocab, t).astype(np.int32) for t in sizes],
    )


def mindspore_side(model: Path, samples: int, long: int) -> None:
    import mindspore as ms

    from npd_ascend.annotate.head import ChunkLogits
    from npd_ascend.annotate.prefill import Scorer
    from npd_ascend.config.job import Device
    from npd_ascend.config.schema import AnnotateConfig
    from npd_ascend.models.spec import ModelSpec
    from npd_ascend.rows.prefill import prefill_batches

    spec = ModelSpec.from_folder(model)
    scorer = Scorer(model, spec, AnnotateConfig(row_length=ROW, micro_batch=ROWS, vocab_chunk_rows=1024), Device())
    contexts, responses = sequences(samples, spec.vocab_size, long)
    net = scorer._net
    parts = list(prefill_batches(contexts, responses, ROW, ROWS, 0))
    rows = [net.inputs(p.rows) for p in parts]
    longest = max(len(p.at) for p in parts)
    at = [ms.Tensor(np.resize(p.at, longest).astype(np.int32)) for p in parts]
    logits = ChunkLogits()

    def forward() -> None:
        for r in rows:
            net(*r).asnumpy()

    def forward_head() -> None:
        for r, where in zip(rows, at, strict=True):
            logits(net(*r), where, net.head_weight)[0, :1].asnumpy()

    serve(
        {
            "forward": timed(forward),
            "forward_head": timed(forward_head),
            "score": timed(lambda: scorer.score(contexts, responses, K)),
        }
    )


def vllm_side(model: Path, samples: int, long: int) -> None:
    from npd_ascend.config.job import Device
    from npd_ascend.config.schema import RolloutConfig
    from npd_ascend.rollout.engine import Engine
    from npd_ascend.rollout.job import RolloutJob

    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    contexts, responses = sequences(samples, vocab, long)
    longest = 16 + max(len(c) + len(r) for c, r in zip(contexts, responses, strict=True))
    here = Path("/nonexistent")
    engine = Engine(
        RolloutJob(
            out=here,
            fingerprint="",
            prompts=here,
            model=model,
            generation=0,
            seed=0,
            settings=RolloutConfig(max_num_seqs=64),
            device=Device(),
            max_model_len=longest,
            eos_token_ids=[],
            vocabulary=vocab,
        )
    )
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    prompts = [
        TokensPrompt(prompt_token_ids=np.concatenate((c, r)).tolist()) for c, r in zip(contexts, responses, strict=True)
    ]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=K, detokenize=False)
    serve(
        {
            "prompt_logprobs": timed(lambda: engine.llm.generate(prompts, params, use_tqdm=False)),
            "no_logprobs": timed(
                lambda: engine.llm.generate(
                    prompts, SamplingParams(max_tokens=1, temperature=0.0, detokenize=False), use_tqdm=False
                )
            ),
        }
    )


def timed(work: Any) -> Any:
    def run() -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - start, time.process_time() - cpu

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "assets/mini/teacher")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=1, help="so many times the mini task's response lengths")
    parser.add_argument("--own", action="store_true", help="against the own forward pass alone")
    parser.add_argument("--side", choices=("mindspore", "vllm"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return {"mindspore": mindspore_side, "vllm": vllm_side}[args.side](args.model, args.samples, args.long)
    common = (args.model, "--samples", args.samples, "--long", args.long, "--side")
    ours = Side(interpreter("mindspore"), __file__, *common, "mindspore")
    sides, asked = [ours], [(ours, "forward"), (ours, "score"), (ours, "forward_head")]
    if not args.own:
        theirs = Side(interpreter("rollout"), __file__, *common, "vllm")
        sides.append(theirs)
        asked += [(theirs, "prompt_logprobs"), (theirs, "no_logprobs")]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for _, name in asked}
    for i in range(args.rounds + 1):
        for side, name in asked:
            took = side.ask(name)
            if i:  # the first round warms up
                seconds[name].append(took)
    for side in sides:
        side.close()
    vocab = json.loads((args.model / "config.json").read_text())["vocab_size"]
    contexts, responses = sequences(args.samples, vocab, args.long)
    tokens = sum(map(len, contexts)) + sum(map(len, responses))
    array = {name: np.array(s) for name, s in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "annotate_vs_prompt_logprobs",
                "model": str(args.model),
                "vocab": vocab,
                "tokens": tokens,
                "tokens_per_s": {name: round(tokens / float(np.median(s[:, 0]))) for name, s in array.items()},
                **{
                    f"{unit}score / {name}": [
                        round(float(f(s[:, i] / array["score"][:, i])), 3) for f in (np.min, np.median)
                    ]
                    for name, s in array.items()
                    if name in ("forward", "forward_head", "prompt_logprobs")
                    for i, unit in enumerate(("", "cpu: "))
                },
                "ratios": "least and median over rounds",
                "rounds": args.rounds,
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


if __name__ == "__main__":
    main()
