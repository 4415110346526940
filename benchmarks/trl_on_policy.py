"""On-policy distillation of the mini pair with TRL, in torch: seconds a prompt, and accuracy afterwards.

The counterpart of the study's synchronous arms: same checkpoints, prompts, optimiser, learning rates, prompts a step,
length limit. Answers come from transformers' ``generate``, as TRL's trainers do it by default. In an environment of
its own:

    python3.11 -m venv /path/to/trl && /path/to/trl/bin/pip install -r benchmarks/requirements-trl.txt
    /path/to/trl/bin/python benchmarks/trl_on_policy.py --trainer gkd --lmbda 1.0 --beta 0.0

openPangu-Embedded's network is Llama with attention biases, and is handed to transformers as such. Prints one JSON
line; loading and evaluation are not part of ``seconds``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

from npd_ascend.tasks.registry import Attempt  # noqa: E402
from npd_ascend.tasks.rewards.maze import maze  # noqa: E402


def as_llama(folder: Path, out: Path) -> Path:
    """A copy of an openPangu checkpoint with a config that transformers knows."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": False}
    (out / "config.json").write_text(json.dumps(config))
    return out


def read(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]], maze_file: Path, max_new: int) -> float:
    """Greedy, by the maze's own checker."""
    data, right = json.loads(maze_file.read_text()), 0
    model.eval()
    for at in range(0, len(rows), 100):
        part = rows[at : at + 100]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": r["prompt"]}], tokenize=False, add_generation_prompt=True
            )
            for r in part
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                do_sample=False,
                max_new_tokens=max_new,
                pad_token_id=tokenizer.pad_token_id,
            )
        for row, ids in zip(part, out[:, batch.input_ids.shape[1] :], strict=True):
            answer = tokenizer.decode(ids, skip_special_tokens=True)
            right += maze(Attempt(row["prompt"], answer, row["answer"]), data)
    return right / len(rows)


class Clock(TrainerCallback):
    """Wall time from the first step's beginning to the last one's end."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.monotonic() - self._since)


def schedule(step: int, steps: int, warmup: float, floor: float) -> float:
    """The project's: a linear rise, then one cosine down to ``floor`` of the peak."""
    share = (step + 1) / steps
    if share < warmup:
        return share / warmup
    return floor + (1 - floor) * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup))) / 2


def trainer_of(a: argparse.Namespace, student: Any, teacher: Any, tokenizer: Any, rows: list[dict], out: str) -> Any:
    """TRL's trainer with the study's settings."""
    steps = a.epochs * (len(rows) // a.batch)
    common: dict[str, Any] = dict(
        output_dir=out,
        per_device_train_batch_size=a.batch,
        num_train_epochs=a.epochs,
        learning_rate=a.lr,
        seed=a.seed,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=10,
        disable_tqdm=True,
        dataloader_drop_last=True,
    )
    decay = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.95)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: schedule(s, steps, 0.05, 0.1))
    kinds: dict[str, Any] = dict(
        model=student, teacher_model=teacher, processing_class=tokenizer, optimizers=(optimiser, scheduler)
    )
    if a.trainer == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        data = Dataset.from_list(
            [
                {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["answer"]}]}
                for r in rows
            ]
        )
        return GKDTrainer(
            args=GKDConfig(
                **common,
                lmbda=a.lmbda,
                beta=a.beta,
                temperature=a.temperature,
                max_new_tokens=a.max_new,
                max_length=128,
            ),
            train_dataset=data,
            **kinds,
        )
    from trl import DistillationConfig, DistillationTrainer

    data = Dataset.from_list([{"prompt": [{"role": "user", "content": r["prompt"]}]} for r in rows])
    return DistillationTrainer(
        args=DistillationConfig(
            **common,
            beta=a.beta,
            temperature=1.0,
            max_completion_length=a.max_new,
            generation_kwargs={"do_sample": False} if a.greedy else None,
        ),
        train_dataset=data,
        **kinds,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--assets", type=Path, default=ROOT / "assets" / "mini")
    parser.add_argument("--trainer", choices=["gkd", "distillation"], default="gkd")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=40, help="prompts a step")
    parser.add_argument("--max-new", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lmbda", type=float, default=1.0, help="gkd: share of steps on the student's answers")
    parser.add_argument("--beta", type=float, default=0.0, help="0: forward KL, 1: reverse KL, between: JSD")
    parser.add_argument("--temperature", type=float, default=0.05, help="gkd: of sampling alone; 0.05 is nearly greedy")
    parser.add_argument("--greedy", action="store_true", help="distillation: greedy answers in place of T = 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval", type=int, default=600)
    a = parser.parse_args()
    rows = read(a.assets / "prompts_train.jsonl")
    rows = random.Random(a.seed).sample(rows, a.prompts)
    held_out = read(a.assets / "eval.jsonl")[: a.eval]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {n: as_llama(a.assets / n, Path(scratch) / n) for n in ("student", "teacher")}
        student, teacher = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders.values())
        tokenizer = AutoTokenizer.from_pretrained(folders["student"], padding_side="left")
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # a Llama knows no token types
        before = accuracy(student, tokenizer, held_out, a.assets / "maze.json", a.max_new)
        trainer = trainer_of(a, student, teacher, tokenizer, rows, scratch)
        clock = Clock()
        trainer.add_callback(clock)
        start = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - start
        after = accuracy(student, tokenizer, held_out, a.assets / "maze.json", a.max_new)
    seen = a.prompts // a.batch * a.batch * a.epochs
    print(
        json.dumps(
            {
                "trainer": a.trainer,
                "lmbda": a.lmbda if a.trainer == "gkd" else 1.0,
                "beta": a.beta,
                "temperature": a.temperature if a.trainer == "gkd" else 0.0 if a.greedy else 1.0,
                "seed": a.seed,
                "steps": len(clock.steps),
                "prompts": seen,
                "seconds": round(seconds, 1),
                "seconds_per_prompt": round(seconds / seen, 4),
                "accuracy_before": before,
                "accuracy": after,
                "n": len(held_out),
                "trl": trl.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
