"""Who lives in the zoo: pairs of checkpoints that must work, and damaged ones with the line that refuses each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from zoo.models_of import Model, build
from zoo.tokenizers_of import CHATML, HEADERS

STUDENT, TEACHER = 0.11, 0.14
"""Sharpness of the two, so that the student has something to learn."""


@dataclass(frozen=True)
class Member:
    """One pair of checkpoints.

    Attributes:
        student, teacher: what they are like.
        damage: done to the folder that holds both.
        refused: part of the line that refuses it; None: all must work.
        doctor_refuses: whether doctor says the same line, before anything runs. It does not read the weights' values.
        shared: the student's tokenizer knows the teacher's circle of tokens (both have one vocabulary).
    """

    student: Model
    teacher: Model
    damage: Callable[[Path], object] | None = None
    refused: str | None = None
    doctor_refuses: bool = True
    shared: bool = True

    def build(self, folder: Path) -> None:
        """Writes ``teacher`` and ``student``."""
        follow = build(folder / "teacher", self.teacher, 1, TEACHER)
        build(folder / "student", self.student, 2, STUDENT, follow if self.shared else None)
        if self.damage:
            self.damage(folder)


def pair(student: Model, **teacher: object) -> Member:
    """A teacher like the student, but for what is given."""
    return Member(student, replace(student, **teacher))  # type: ignore[arg-type]


def damaged(damage: Callable[[Path], object] | None, refused: str, sharded: bool = False, **other: object) -> Member:
    """A small pair with something wrong."""
    model = Model("llama", 2, "chatml", sharded=sharded)
    return Member(model, model, damage, refused, **other)  # type: ignore[arg-type]


# ---- damage

NORM = "model.norm.weight"


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Changes the student's tensors."""

    def damage(folder: Path) -> None:
        path = folder / "student" / "model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path, metadata={"format": "pt"})

    return damage


def pickled(folder: Path) -> None:
    """Weights in a pickle only."""
    (folder / "student" / "model.safetensors").rename(folder / "student" / "pytorch_model.bin")


def endless(folder: Path) -> None:
    """A template that does not come to an end, in both models."""
    for name in ("student", "teacher"):
        path = folder / name / "tokenizer_config.json"
        loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": loop + CHATML}))


def _nan(found: dict[str, np.ndarray]) -> None:
    found["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan


# ---- all

_QWEN_BASE = {"eos": "<|endoftext|>", "default": "You are a helpful assistant."}
_QWEN = Model("qwen2", 2, "qwen", _QWEN_BASE, padding=8, stops=("<|endoftext|>",))

MEMBERS: dict[str, Member] = {
    "pangu-tied": pair(Model("PanguEmbedded", 2, "pangu", tied=True), layers=3, tied=False),
    "pangu-1b-deep": pair(Model("PanguEmbedded", 26, "pangu", tied=True, dtype="bfloat16"), layers=32, tied=False),
    "pangu-released": pair(Model("PanguEmbedded", 3, "pangu released", dtype="bfloat16", sharded=True), padding=40),
    "pangu-float16": pair(Model("PanguEmbedded", 2, "pangu", padding=0, dtype="float16", saver="own"), sharded=True),
    "qwen-base-instruct": Member(_QWEN, Model("qwen2", 3, "qwen", padding=24, stops=("<|im_end|>", "<|endoftext|>"))),
    "qwen-tied-bf16": pair(Model("qwen2", 3, "qwen", tied=True, padding=24, dtype="bfloat16"), tied=False, padding=2),
    "qwen-32-layers": pair(Model("qwen2", 32, "qwen", sharded=True), layers=2, sharded=False),
    "qwen-transformers-5": pair(Model("qwen2", 2, "qwen", tied=True, sharded=True, saver="5", dtype="bfloat16")),
    "llama-smollm": pair(Model("llama", 3, "smollm", tied=True, padding=0, dtype="bfloat16"), layers=4),
    "llama-12-layers": pair(Model("llama", 12, "smollm", padding=0), tied=True, layers=3),
    "llama-bos-chat": pair(Model("llama", 2, "llama", {"template": HEADERS}, dtype="float16")),
    "llama-bos-raw": pair(Model("llama", 2, "llama"), layers=3),
    "llama-plain-raw": pair(Model("llama", 2, "plain", tied=True, sharded=True), dtype="bfloat16"),
    "llama-transformers-5": pair(Model("llama", 2, "chatml", saver="5"), saver="5", padding=64, dtype="bfloat16"),
    "llama-5-then-own": pair(Model("llama", 2, "chatml", tied=True, saver="5, own", dtype="float16"), saver="4"),
    "llama-large-states": pair(Model("llama", 3, "chatml", large=True), layers=4),
    "pickled": damaged(pickled, "holds pickled weights"),
    "shard-missing": damaged(lambda f: next((f / "student").glob("*-00002-of-*")).unlink(), "-00002-of-", sharded=True),
    "cut-off": damaged(lambda f: os.truncate(f / "teacher" / "model.safetensors", 90_000), "ends inside tensor"),
    "tensor-missing": damaged(tensors(lambda t: t.pop(NORM)), f"missing: {NORM}"),
    "tensor-extra": damaged(tensors(lambda t: t.update(ghost=t[NORM])), "not expected: ghost"),
    "shape-wrong": damaged(tensors(lambda t: t.update({NORM: t[NORM][:32]})), f"{NORM} has shape [32]"),
    "weight-nan": damaged(tensors(_nan), "NaN", doctor_refuses=False),
    "tokenizer-broken": damaged(
        lambda f: (f / "student" / "tokenizer.json").write_text('{"version": "1.0"'), "cannot be"
    ),
    "vocabularies-differ": Member(
        Model("llama", 2, "chatml"),
        Model("llama", 2, "chatml", {"corpus": ["and now for something else entirely"]}),
        refused="have different vocabularies",
        shared=False,
    ),
    "logits-narrow": Member(
        Model("llama", 2, "chatml", padding=-4), Model("llama", 2, "chatml"), refused="its logits cover"
    ),
    "template-endless": damaged(endless, "10 s"),
}
