"""Builds a small task on real text from question-and-answer JSON lines such as GSM8K's train.jsonl.

    python tools/make_text_task.py --data ../gsm8k/train.jsonl --out runs/text_assets

Writes ``tokenizer/`` (byte-level BPE trained on the text, with openPangu's special tokens and chat template) and, as
JSON lines of ``prompt``, ``response`` and ``answer``: ``sft.jsonl``, ``prompts.jsonl`` (other questions, for rollouts)
and ``eval.jsonl`` (held out). Nothing depends on anything but the file, the sizes and the seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import mini_tokenizer

from npd_ascend.config.schema import DataConfig
from npd_ascend.data.prompts import PromptRow, read_prompts
from npd_ascend.errors import UserError
from npd_ascend.store.atomic import write_bytes


def training_text(rows: list[PromptRow]) -> Iterator[str]:
    """Questions and answers, each behind its turn's header so that headers become single tokens."""
    for row in rows:
        for role, text in (("user", row.text), ("assistant", row.response or "")):
            yield f"{mini_tokenizer.ROLES[role]}{mini_tokenizer.COLON}"
            yield text
        yield f"{mini_tokenizer.ROLES['system']}{mini_tokenizer.COLON}"


def build(
    data: Path,
    out: Path,
    question: str,
    answer: str,
    vocab_size: int,
    sft: int,
    prompts: int,
    evaluation: int,
    seed: int,
) -> dict[str, int]:
    """Writes the task's files to ``out``.

    Returns:
        Rows of each file.

    Raises:
        UserError: unusable data, or fewer rows than asked for.
    """
    settings = DataConfig(prompts=[data], prompt_field=question, response_field=answer, answer_field=answer)
    rows = list(read_prompts([data], settings, need_reference=True, need_answer=True))
    wanted = sft + prompts + evaluation
    if wanted > len(rows):
        raise UserError(f"{data}: has {len(rows)} rows, {wanted} are asked for; lower --sft, --prompts or --eval")
    random.Random(seed).shuffle(rows)
    parts = {
        "sft.jsonl": rows[:sft],
        "prompts.jsonl": rows[sft : sft + prompts],
        "eval.jsonl": rows[sft + prompts : wanted],
    }
    for name, part in parts.items():
        lines = [
            json.dumps({"prompt": r.text, "response": r.response, "answer": r.answer}, ensure_ascii=False) for r in part
        ]
        write_bytes(out / name, "".join(line + "\n" for line in lines).encode())
    # The held-out questions do not shape the tokenizer.
    tokenizer = mini_tokenizer.byte_level_bpe(training_text(rows[: sft + prompts]), vocab_size)
    mini_tokenizer.save(tokenizer, out / "tokenizer")
    return {name: len(part) for name, part in parts.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text_assets"))
    parser.add_argument("--question-field", default="question")
    parser.add_argument("--answer-field", default="answer")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--sft", type=int, default=4000, help="rows to fine-tune on")
    parser.add_argument("--prompts", type=int, default=400, help="rows for rollouts")
    parser.add_argument("--eval", type=int, default=100, help="held-out rows")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        rows = build(
            args.data,
            args.out,
            args.question_field,
            args.answer_field,
            args.vocab_size,
            args.sft,
            args.prompts,
            args.eval,
            args.seed,
        )
    except UserError as e:
        raise SystemExit(f"error: {e}") from None
    for name, count in rows.items():
        print(f"{args.out / name}: {count} rows")


if __name__ == "__main__":
    main()
