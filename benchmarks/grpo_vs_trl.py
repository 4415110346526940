"""GRPO of the mini student beside TRL's GRPOTrainer: where the time of ten generations goes.

The same checkpoint, prompts a generation, answers a prompt, length limit, reward, clipping, mean and learning rate. TRL
cuts the 2,048 answers of a generation into ``--steps`` batches and pads them; the project packs those that are not left
out and takes as many steps as fill. TRL's answers come from transformers' ``generate``, its default, all of a
generation in one batch.

    npd run configs/mini_grpo.yaml --set run.dir=runs/grpo_speed
    python benchmarks/grpo_vs_trl.py npd runs/grpo_speed
    /path/to/trl/bin/python benchmarks/grpo_vs_trl.py trl           # see benchmarks/trl_on_policy.py

Each prints one JSON line of seconds. ``start``, loading and compiling, and evaluation are no part of ``total``;
``rest`` of the project passes outside of stages. The executor's share is that, and what passes in stages without a
device outside of their work.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PARTS = {name: name for name in ("rollout", "reward", "train", "evaluate")}


def of_run(run: Path) -> dict[str, Any]:
    """Seconds of a finished run by part, from its metrics; of one without ``sync.lead``."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stages, steps = ([r for r in rows if r["kind"] == kind] for kind in ("stage", "train"))
    wall = max(r["time"] for r in stages) - min(r["time"] - r["seconds"] for r in stages)
    rest = wall - sum(r["seconds"] for r in stages)
    parts: Counter[str] = Counter()
    handing = 0.0
    for r in stages:
        once = r.get("start", 0.0) + r.get("compile", 0.0)
        parts["start"] += once
        parts[_PARTS.get(r["stage"], "data")] += r["seconds"] - once
        if r["stage"] in ("draw", "rollout", "reward", "select", "pack"):
            handing += r["seconds"] - once - r["busy"] - r.get("load", 0.0)
    total = wall - parts["start"] - parts["evaluate"]
    answers = [r for r in stages if r["stage"] == "rollout"]
    return {
        "side": "npd",
        **rounded(parts),
        "rest": round(rest, 2),
        "total": round(total, 2),
        "executor's share": round((rest + handing) / total, 4),
        "generations": len(answers),
        "steps": len(steps),
        "answers": sum(r["samples"] for r in answers),
        "answer_tokens": sum(r["tokens"] for r in answers),
    }


def of_trl(a: argparse.Namespace) -> dict[str, Any]:
    """Trains with TRL and times the parts."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl_on_policy import as_llama, read

    from npd_ascend.tasks.registry import Attempt
    from npd_ascend.tasks.rewards.maze import maze

    data, spent, lengths = json.loads((a.assets / "maze.json").read_text()), Counter[str](), []

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        since = time.monotonic()
        try:
            yield
        finally:
            spent[part] += time.monotonic() - since

    class Timed(GRPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            with timed("rollout"):
                return super()._generate(*args, **kwargs)

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            with timed("reward"):
                return super()._calculate_rewards(*args, **kwargs)

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            with timed("scoring"):
                return super()._generate_and_score_completions(*args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with timed("step"):
                return super().training_step(*args, **kwargs)

    def reward(prompts: list, completions: list, answer: list, **_: Any) -> list[float]:
        lengths.extend(len(c[0]["content"].split()) for c in completions)
        return [
            float(maze(Attempt(p[-1]["content"], c[0]["content"], right), data))
            for p, c, right in zip(prompts, completions, answer, strict=True)
        ]

    rows = [
        {"prompt": [{"role": "user", "content": r["prompt"]}], "answer": r["answer"]}
        for r in read(a.assets / "prompts_train.jsonl")
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = as_llama(a.assets / "student", Path(scratch) / "student")
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # a Llama knows no token types
        config = GRPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=a.slice * a.samples // a.steps,
            steps_per_generation=a.steps,
            num_generations=a.samples,
            max_steps=a.generations * a.steps,
            max_completion_length=a.max_new,
            temperature=1.0,
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.28,
            scale_rewards="none",
            loss_type="dapo",
            learning_rate=1e-4,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=max(1, a.steps // 2),
            weight_decay=0.0,
            adam_beta1=0.9,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            seed=a.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=a.steps,
            disable_tqdm=True,
        )
        student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        trainer = Timed(
            model=student,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        since = time.monotonic()
        trainer.train()
        total = time.monotonic() - since
        rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    parts = {
        "rollout": spent["rollout"],
        "reward": spent["reward"],
        "train": spent["step"] - spent["scoring"],
        "data": spent["scoring"] - spent["rollout"] - spent["reward"],
        "rest": total - spent["step"],
    }
    return {
        "side": "trl",
        **rounded(parts),
        "total": round(total, 2),
        "generations": a.generations,
        "steps": a.generations * a.steps,
        "answers": len(lengths),
        "answer_tokens": sum(lengths) + len(lengths),  # a place is a token; and the end
        "rewards": [round(r, 3) for r in rewards],
        "trl": trl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": os.cpu_count(),
    }


def rounded(parts: dict[str, float]) -> dict[str, float]:
    """To hundredths of a second."""
    return {name: round(value, 2) for name, value in parts.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sides = parser.add_subparsers(dest="side", required=True)
    sides.add_parser("npd").add_argument("run", type=Path, help="directory of a finished run")
    peer = sides.add_parser("trl")
    peer.add_argument("--assets", type=Path, default=ROOT / "assets" / "mini")
    peer.add_argument("--generations", type=int, default=10)
    peer.add_argument("--slice", type=int, default=256, help="prompts a generation")
    peer.add_argument("--samples", type=int, default=8, help="answers a prompt")
    peer.add_argument("--steps", type=int, default=4, help="optimiser steps a generation")
    peer.add_argument("--max-new", type=int, default=64)
    peer.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(json.dumps(of_run(a.run) if a.side == "npd" else of_trl(a)))


if __name__ == "__main__":
    main()
