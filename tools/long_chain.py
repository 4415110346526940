"""The whole chain once at rows of 32,768 tokens, with real engines, models of tiny width and answers of thousands.

    python tools/long_chain.py [--out runs/long_chain] [--prompts 96]

Rollout, annotation, packing, training, refresh, a second generation, export and evaluation of a thinking model: one
process of `npd run`, whose peak memory is taken. Then what was stored is compared with what was asked for, and the
tool fails where the two differ.

The models are Markov chains written into the weights of an openPangu network: its embedding is the identity, its head
holds log-probabilities of the next token given this one, and its layers add a little noise that looks at all earlier
positions. They think for some 1,700 tokens, a few of them beyond the limit, and answer with some 400.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from mini_tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIALS, save, word_level
from safetensors.numpy import load_file, save_file

from npd_ascend.arrays import Array
from npd_ascend.data.pangu import ROLES, THINK_END, THINK_START
from npd_ascend.out_of_memory import resident_bytes
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics
from npd_ascend.train.corpus import EpochPlan

ROW, PROMPT, ANSWER = 32768, 64, 3456
GIB, MINUTES = 16, 20
"""What the run may take."""
WORDS, LAYERS, HEADS, HEAD_DIM, MLP = 115, 2, 1, 32, 64
FIRST = len(SPECIALS) + len(ROLES) + 1
"""First word; before it stand special tokens, roles and the colon."""
VOCAB = FIRST + WORDS
START, END = SPECIALS.index(THINK_START), SPECIALS.index(THINK_END)
_STEP = 0.5


def next_token(thought: float, answer: float) -> Array:
    """[V, V] log-probabilities of the next token (columns) given this one.

    Args:
        thought, answer: mean tokens of either.
    """
    p = np.full((VOCAB, VOCAB), 1e-8)
    half = FIRST + WORDS // 2
    p[FIRST:half, FIRST:half], p[FIRST:half, END] = 1 / (half - FIRST), 1 / thought
    p[half:, half:], p[half:, EOS_ID] = 1 / (VOCAB - half), 1 / answer
    p[START, FIRST:half] = p[END, half:] = 1.0
    p[FIRST - 1, START], p[FIRST - 1, half:] = 9.0, 1 / (VOCAB - half)  # the colon in front of the answer
    # Some words are likelier than others, so that there is something to learn.
    p[:, FIRST:] *= 1 + 0.5 * np.sin(np.arange(WORDS))
    out: Array = np.log(p / p.sum(1, keepdims=True)).astype(np.float32)
    return out


def make_model(folder: Path, thought: float, answer: float, seed: int) -> None:
    """A checkpoint with tokenizer."""
    save(word_level([f"w{i}" for i in range(WORDS)]), folder)
    rng, head_dim = np.random.default_rng(seed), HEAD_DIM

    def noise(*shape: int) -> Array:
        value: Array = rng.standard_normal(shape).astype(np.float32)
        return value * np.float32(0.02)

    def quiet(*shape: int) -> Array:
        # What layers add meets log-probabilities of -18 in all directions.
        return noise(*shape) * np.float32(0.02)

    # The final norm makes √V of the identity's one.
    tensors = {
        "model.embed_tokens.weight": np.eye(VOCAB, dtype=np.float32),
        "lm_head.weight": np.ascontiguousarray(next_token(thought, answer).T) / np.float32(math.sqrt(VOCAB)),
        "model.norm.weight": np.ones(VOCAB, np.float32),
    }
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        for name, rows in (("q", HEADS * head_dim), ("k", head_dim), ("v", head_dim)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = noise(rows, VOCAB)
            tensors[f"{at}.self_attn.{name}_proj.bias"] = noise(rows)
        tensors[f"{at}.self_attn.o_proj.weight"] = quiet(VOCAB, HEADS * head_dim)
        tensors[f"{at}.self_attn.o_proj.bias"] = quiet(VOCAB)
        tensors[f"{at}.mlp.gate_proj.weight"] = noise(MLP, VOCAB)
        tensors[f"{at}.mlp.up_proj.weight"] = noise(MLP, VOCAB)
        tensors[f"{at}.mlp.down_proj.weight"] = quiet(VOCAB, MLP)
        tensors[f"{at}.input_layernorm.weight"] = np.ones(VOCAB, np.float32)
        tensors[f"{at}.post_attention_layernorm.weight"] = np.ones(VOCAB, np.float32)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "PanguEmbedded",
        "architectures": ["PanguEmbeddedForCausalLM"],
        "bias": True,
        "vocab_size": VOCAB,
        "hidden_size": VOCAB,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 16e6,
        "max_position_embeddings": ROW,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    (folder / "config.json").write_text(json.dumps(config))


def configuration(out: Path, prompts: int) -> Path:
    """Models, prompts and the run's YAML."""
    make_model(out / "teacher", 1400, 400, 0)
    make_model(out / "student", 1700, 400, 1)
    rng = np.random.default_rng(2)
    lines = [
        json.dumps({"prompt": " ".join(f"w{w}" for w in rng.integers(0, WORDS, 8)), "answer": "w1"})
        for _ in range(prompts + 8)
    ]
    (out / "train.jsonl").write_text("\n".join(lines[:prompts]) + "\n")
    (out / "held_out.jsonl").write_text("\n".join(lines[prompts:]) + "\n")
    tree: dict[str, Any] = {
        "run": {"dir": str(out / "run")},
        "models": {"teacher": str(out / "teacher"), "student": str(out / "student")},
        "data": {"prompts": [str(out / "train.jsonl")], "answer_field": "answer", "max_prompt_tokens": PROMPT},
        # Workers leave after their stage: attention over such rows takes gigabytes on a CPU, for each model.
        "rollout": {
            "max_new_tokens": ANSWER,
            "greedy": False,
            "samples": 1,
            "shard_size": prompts,
            "keep_alive": False,
        },
        "annotate": {"row_length": ROW, "keep_alive": False},
        "select": {"lower": None, "upper": None, "keep_truncated": False},
        "pack": {"row_length": ROW},
        "train": {"epochs": 2, "lr": 1e-4, "min_lr": 1e-5, "global_batch": 2, "recompute": True, "keep_alive": False},
        "sync": {"refreshes": 1, "probe_samples": 8, "lag_every": 0},
        "evaluate": {"prompts": [str(out / "held_out.jsonl")], "max_new_tokens": 1024, "at_refresh": False},
        "device": {"target": "cpu"},
    }
    path = out / "long_chain.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Watch(threading.Thread):
    """Resident memory of this process and all that it has started, its largest sum."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stop = 0, threading.Event()

    def run(self) -> None:
        while not self.stop.wait(_STEP):
            self.peak = max(self.peak, resident_bytes(os.getpid()))


def check_generation(run: RunDir, number: int) -> dict[str, Any]:
    """Compares answers, selection and rows of a generation with what the configuration asks for."""
    g = run.generation(number)
    rollouts = Dataset.open(g.rollouts, "rollouts").read_all(["response_ids", "finish_reason", "tokens"])
    answers: list[Array] = [np.array(x) for x in rollouts["response_ids"].to_pylist()]
    cut = np.array(rollouts["finish_reason"].cast(pa.string()).to_pylist()) == "length"
    tokens = rollouts["tokens"].to_numpy()
    selection = Dataset.open(g.selection, "selection").read_all(["keep", "reason"])
    keep = selection["keep"].to_numpy(zero_copy_only=False)
    plan = EpochPlan.read(Dataset.open(g.packs, "packs"), 0)
    rows = np.add.reduceat(plan.prompt_tokens.astype(np.int64) + plan.response_tokens, plan.first[:-1])
    thinks = np.array([START in a for a in answers])
    closed = np.array([END in a for a in answers])

    assert tokens.max() == ANSWER and np.mean(tokens) > 1000, "answers are not of thousands of tokens"
    assert 0 < cut.sum() < len(cut) / 2 and (tokens[cut] == ANSWER).all(), "some answers end at the limit, not most"
    assert all(a[-1] == EOS_ID for a in np.array(answers, object)[~cut]), "a finished answer has no end token"
    assert thinks.mean() > 0.7 and (thinks & ~closed & cut).any(), "no thought is cut off"
    assert (keep == ~cut).all(), "unfinished answers are left out, all others kept"
    assert set(np.array(selection["reason"].cast(pa.string()).to_pylist())[cut]) == {"truncated"}
    trained = np.array(sorted(plan.samples))
    assert (trained == np.flatnonzero(keep)).all(), "each kept answer stands in one row"
    assert rows.max() > 0.98 * ROW and rows.max() <= ROW, f"no row is full: {rows.max()} of {ROW}"
    assert (plan.response_tokens == tokens[plan.samples]).all(), "rows hold whole answers, thoughts included"
    assert (thinks & closed)[trained].sum() > 0.7 * len(trained), "thinking marks are in what is trained on"
    return {
        "answers": len(answers),
        "tokens": int(tokens.sum()),
        "median": int(np.median(tokens)),
        "unfinished": int(cut.sum()),
        "think": int(thinks.sum()),
        "rows": rows.tolist(),
    }


def check(run: RunDir, student: Path) -> dict[str, Any]:
    """What a finished run shows; fails where it is not as asked."""
    assert len(run.generations()) == 2, "there are two generations"
    out: dict[str, Any] = {f"generation {n}": check_generation(run, n) for n in run.generations()}
    rows = read_metrics(run.metrics)
    steps = [r for r in rows if r["kind"] == "train"]
    assert steps and all(math.isfinite(r["loss"]) and math.isfinite(r["grad_norm"]) for r in steps), "loss not finite"
    lag = [r["forward"] for r in rows if r["kind"] == "lag"]
    assert min(lag) == 0 and max(lag) > 0, "lag is 0 after a refresh and grows with training"
    evaluation = read_sealed(run.evaluation("end")) or {}
    # Greedily, a thought of this chain never comes to its end.
    assert evaluation["unfinished_thinking"] == evaluation["thinking"] > 0.5
    before, after = load_file(student / "model.safetensors"), {}
    for file in run.export.glob("*.safetensors"):
        after |= load_file(file)
    assert before.keys() == after.keys() and all(np.isfinite(x).all() for x in after.values())
    assert all((before[name] != after[name]).any() for name in before), "a tensor was not trained"
    return out | {
        "steps": len(steps),
        "loss": [round(r["loss"], 4) for r in steps],
        "lag": [round(x, 5) for x in lag],
        "unfinished_thinking": evaluation["unfinished_thinking"],
        "seconds": {r["stage"]: round(r["seconds"]) for r in rows if r["kind"] == "stage"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/long_chain"), help="folder, must not exist yet")
    parser.add_argument("--prompts", type=int, default=96)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True)
    path = configuration(out, args.prompts)
    watch, start = Watch(), time.monotonic()
    watch.start()
    subprocess.run([sys.executable, "-m", "npd_ascend.cli", "run", str(path)], check=True)
    seconds = time.monotonic() - start
    watch.stop.set()
    print(f"{seconds / 60:.1f} minutes, peak memory {watch.peak / 2**30:.1f} GiB of all processes", flush=True)
    found = check(RunDir(out / "run"), out / "student")
    print(json.dumps(found, indent=1))
    if watch.peak > GIB * 2**30 or seconds > MINUTES * 60:
        raise SystemExit(f"more than {GIB} GiB or {MINUTES} minutes")


if __name__ == "__main__":
    main()
