"""Small checkpoints that answer: a few tokens, then an end of turn, whatever the prompt.

The first layer's MLP is a key-value memory (arXiv:2012.14913): the embedding of each token of a circle opens one
neuron, which puts the next token's embedding in its place. The other layers add some noise. So a model of any depth,
tied or not, ends its answers, and goes on if whoever runs it does not know the end.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer, tokenizer_size
from npd_ascend.environments import Environments
from npd_ascend.models.convert import convert
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import entries
from npd_ascend.models.weights import rewrite
from zoo.tokenizers_of import KINDS

HIDDEN, FFN, HEADS, KV = 64, 96, 2, 1
PROMPT = "How many clips {}?"
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LARGE, _AT = 2e4, 5


@dataclass(frozen=True)
class Model:
    """What a checkpoint is like.

    Attributes:
        family: PanguEmbedded, llama or qwen2.
        layers: depth.
        tokenizer: a key of ``tokenizers_of.KINDS``.
        options: its arguments.
        tied: whether head and embedding are one.
        padding: logits beyond the tokenizer's ids; negative: they do not cover it.
        dtype: float32, bfloat16 or float16.
        sharded: several weight files.
        saver: ``4``: the layout of transformers 4; ``5``: saved by transformers 5; ``own``: by ``npd convert``;
            ``5, own``: one after the other.
        large: hidden states in the ten thousands.
        stops: ``eos_token_id`` of config.json and generation_config.json, as tokens; None: the template's end.
    """

    family: str
    layers: int
    tokenizer: str
    options: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    padding: int = 8
    dtype: str = "float32"
    sharded: bool = False
    saver: str = "4"
    large: bool = False
    stops: tuple[str, ...] | None = None


def circle(folder: Path) -> list[int]:
    """Token ids that a model is to follow: from the last token of every prompt over three others to the end."""
    tokenizer = load_tokenizer(folder)
    template = Template(tokenizer, "auto", eos_token_ids(folder, tokenizer))
    start = template.prompts(template.render([[{"role": "user", "content": PROMPT.format(3)}]]))[0][-1]
    between = [tokenizer(c, add_special_tokens=False)["input_ids"][-1] for c in "48+"]
    return [start, *between, template.end_ids[-1], between[0]]


def build(folder: Path, model: Model, seed: int, sharpness: float, follow: list[int] | None = None) -> list[int]:
    """Writes a checkpoint.

    Args:
        folder: to be made.
        model: what it is to be like.
        seed: of its weights.
        sharpness: standard deviation of the embedding; at 0.11 the next token has about half of the probability.
        follow: token ids that it follows; None: as its own template has it.

    Returns:
        Those ids.
    """
    KINDS[model.tokenizer](folder, **model.options)
    follow = follow or circle(folder)
    tokenizer = load_tokenizer(folder)
    stops = [follow[-2]] if model.stops is None else [tokenizer.convert_tokens_to_ids(t) for t in model.stops]
    ends: int | list[int] = stops[0] if len(stops) == 1 else stops
    bos = tokenizer.bos_token_id
    config = {
        "model_type": model.family, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": model.layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "rope_theta": 1e4, "tie_word_embeddings": model.tied,
        "torch_dtype": model.dtype, "use_cache": True, "initializer_range": 0.02, "attention_dropout": 0.0,
        "vocab_size": tokenizer_size(tokenizer) + model.padding, "bos_token_id": bos, "eos_token_id": stops[0],
        **({"bias": True} if model.family == "PanguEmbedded" else {}),
        **({"use_sliding_window": False} if model.family == "qwen2" else {})}  # fmt: skip
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}
    initial_checkpoint(
        folder,
        config,
        seed=seed,
        dtype=_TYPES[model.dtype],
        std=0.05,
        norm_std=0.05,
        bias_std=0.02,
        shard_bytes=60_000 if model.sharded else 1 << 30,
    )
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": bos, "eos_token_id": ends, "do_sample": False})
    )
    teach(folder, follow, seed, sharpness, model.large)
    _save(folder, model.saver)
    return follow


def teach(folder: Path, follow: list[int], seed: int, sharpness: float, large: bool = False) -> None:
    """Makes a checkpoint follow a circle of tokens; of large hidden states if asked for."""
    spec, found = ModelSpec.from_folder(folder), entries(folder)
    embedding = np.random.default_rng(seed).standard_normal((spec.vocab_size, spec.hidden_size)) * sharpness
    keys = embedding[follow[:-1]] / sharpness
    nexts = embedding[follow[1:]] - embedding[follow[:-1]]
    residual = 0.1 * sharpness / math.sqrt(2 * spec.num_layers)

    def values(name: str) -> np.ndarray:
        value = found[name].read()
        part = name.split(".", 3)[-1] if ".layers." in name else name
        if part in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            value = value / 0.05 * residual
        if name.startswith("model.layers.0.mlp."):
            memory, n = (
                {"gate": keys * 8 / spec.hidden_size, "up": keys / spec.hidden_size, "down": nexts.T / 8}[
                    part[4:].split("_")[0]
                ],
                len(keys),
            )
            value[(slice(n), ...) if part != "mlp.down_proj.weight" else (..., slice(n))] = memory
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            value = embedding.copy()
        if large:
            value = _swell(name, value, spec.hidden_size, sharpness)
        return value.astype(np.float32)

    rewrite(folder, folder, found, None, values)


def _swell(name: str, value: np.ndarray, hidden: int, sharpness: float) -> np.ndarray:
    """One dimension of the residual stream is huge, and the norms hide it, as in trained models."""
    if name == "model.embed_tokens.weight":
        value[:, _AT] = _LARGE
    elif name.endswith("norm.weight"):
        value *= _LARGE / math.sqrt(hidden) / sharpness
        value[_AT] = 0.01
    return value


def _save(folder: Path, saver: str) -> None:
    """Has the folder written once more, by whoever the layout is of."""
    for who in saver.split(", "):
        if who == "4":
            continue
        fresh = folder.with_name(folder.name + ".saved")
        if who == "5":
            script = Path(__file__).with_name("save_with_transformers5.py")
            subprocess.run([Environments.find().rollout, script, folder, fresh], check=True, capture_output=True)
        else:
            convert(folder, fresh)
        shutil.rmtree(folder)
        fresh.rename(folder)
