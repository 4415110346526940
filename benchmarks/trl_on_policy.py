"""On-policy distillation with TRL, in torch: seconds a prompt, and accuracy afterwards.

The counterpart of the study's synchronous arms: same checkpoints, prompts, optimiser, learning rates, prompts a step,
length limit, all from a configuration. Answers come from transformers' ``generate``, as TRL's trainers do it by
default. In an environment of its own:

    python3.11 -m venv /path/to/trl && /path/to/trl/bin/pip install -r benchmarks/requirements-trl.txt
    /path/to/trl/bin/python benchmarks/trl_on_policy.py --trainer gkd --lmbda 1.0 --beta 0.0
    /path/to/trl/bin/python benchmarks/trl_on_policy.py --config configs/smollm2.yaml \\
        --rows runs/study_real/prompts/small-120-0.jsonl --epochs 2 --batch 8 --max-new 128 --eval 178

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

from npd_ascend.config.load import load_config  # noqa: E402
from npd_ascend.config.schema import Config  # noqa: E402
from npd_ascend.tasks.registry import Attempt, Checker  # noqa: E402


def as_llama(folder: Path, out: Path) -> Path:
    """A checkpoint that transformers knows: of an openPangu one a copy with another config."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "llama":
        return folder
    shutil.copytree(folder, out)
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": False}
    (out / "config.json").write_text(json.dumps(config))
    return out


def read(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]], config: Config, max_new: int) -> float:
    """Greedy, by the configuration's own checker."""
    field, check, right = config.data.prompt_field, Checker.of(config), 0
    model.eval()
    for at in range(0, len(rows), 100):
        part = rows[at : at + 100]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": r[field]}], tokenize=False, add_generation_prompt=True
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
            right += check(Attempt(row[field], answer, row[config.data.answer_field]))
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


def trainer_of(
    a: argparse.Namespace, config: Config, student: Any, teacher: Any, tokenizer: Any, rows: list[dict], out: str
) -> Any:
    """TRL's trainer with the study's settings."""
    steps, train, field = a.epochs * (len(rows) // a.batch), config.train, config.data.prompt_field
    answer = config.data.response_field or config.data.answer_field
    common: dict[str, Any] = dict(
        output_dir=out,
        per_device_train_batch_size=a.batch,
        num_train_epochs=a.epochs,
        learning_rate=a.lr,
        seed=a.seed,
        weight_decay=train.weight_decay,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        max_grad_norm=train.clip,
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
        [{"params": decay, "weight_decay": train.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=a.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
    )
    floor = train.min_lr / train.lr
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: schedule(s, steps, train.warmup, floor))
    kinds: dict[str, Any] = dict(
        model=student, teacher_model=teacher, processing_class=tokenizer, optimizers=(optimiser, scheduler)
    )
    if a.trainer == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        data = Dataset.from_list(
            [
                {"messages": [{"role": "user", "content": r[field]}, {"role": "assistant", "content": r[answer]}]}
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
                max_length=config.pack.row_length,
            ),
            train_dataset=data,
            **kinds,
        )
    from trl import DistillationConfig, DistillationTrainer

    data = Dataset.from_list([{"prompt": [{"role": "user", "content": r[field]}]} for r in rows])
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
    parser.add_argument("--config", default=str(ROOT / "configs" / "mini.yaml"))
    parser.add_argument("--rows", type=Path, help="prompts in place of those of --config, all of them")
    parser.add_argument("--trainer", choices=["gkd", "distillation"], default="gkd")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=40, help="prompts a step")
    parser.add_argument("--max-new", type=int, help="default: that of --config")
    parser.add_argument("--lr", type=float, help="default: that of --config")
    parser.add_argument("--lmbda", type=float, default=1.0, help="gkd: share of steps on the student's answers")
    parser.add_argument("--beta", type=float, default=0.0, help="0: forward KL, 1: reverse KL, between: JSD")
    parser.add_argument("--temperature", type=float, default=0.05, help="gkd: of sampling alone; 0.05 is nearly greedy")
    parser.add_argument("--greedy", action="store_true", help="distillation: greedy answers in place of T = 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval", type=int, default=600)
    parser.add_argument("--out", type=Path, help="where the student is left")
    a = parser.parse_args()
    config = load_config(a.config)
    a.lr, a.max_new = a.lr or config.train.lr, a.max_new or config.rollout.max_new_tokens
    rows = [r for path in ([a.rows] if a.rows else config.data.prompts) for r in read(path)]
    rows = rows if a.rows else random.Random(a.seed).sample(rows, a.prompts)
    held_out = [r for path in config.evaluate.prompts for r in read(path)][: a.eval]
    with tempfile.TemporaryDirectory() as scratch:
        models = {"student": config.models.student, "teacher": config.models.teacher}
        folders = {n: as_llama(m, Path(scratch) / n) for n, m in models.items()}
        student, teacher = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders.values())
        tokenizer = AutoTokenizer.from_pretrained(folders["student"], padding_side="left")
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # a Llama knows no token types
        before = accuracy(student, tokenizer, held_out, config, a.max_new)
        trainer = trainer_of(a, config, student, teacher, tokenizer, rows, scratch)
        clock = Clock()
        trainer.add_callback(clock)
        start = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - start
        after = accuracy(student, tokenizer, held_out, config, a.max_new)
        if a.out:
            student.save_pretrained(a.out)
            tokenizer.save_pretrained(a.out)
    seen = len(rows) // a.batch * a.batch * a.epochs
    print(
        json.dumps(
            {
                "config": a.config,
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
