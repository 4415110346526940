"""Makes a randomly initialised checkpoint of openPangu-Embedded's architecture, as a Hugging Face folder.

    python tools/init_checkpoint.py --preset mini-student --tokenizer assets/mini/tokenizer --out runs/init/student
    python tools/init_checkpoint.py --preset openpangu-1b --dtype bfloat16 --out runs/init/pangu-1b

Weights are normal with standard deviation 0.02; the two projections that write to the residual stream have it
divided by sqrt(2 L) (GPT-2, section 2.3), so that the stream's variance does not grow with the number of layers L.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.data.tokenizer import COMPANIONS, TOKENIZER_FILES, load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.shapes import known_shapes
from npd_ascend.store.atomic import atomic_folder, write_json

STD = 0.02
_TYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Shape:
    """Dimensions of a dense openPangu model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool


def released(name: str) -> Shape:
    """The shape of a public checkpoint."""
    c = known_shapes()[name]
    return Shape(
        c["hidden_size"],
        c["intermediate_size"],
        c["num_hidden_layers"],
        c["num_attention_heads"],
        c["num_key_value_heads"],
        c["vocab_size"],
        c["rope_theta"],
        c["max_position_embeddings"],
        c["tie_word_embeddings"],
    )


PRESETS = {
    "mini-student": Shape(128, 384, 3, 4, 2, 96, 10_000.0, 2048, False),
    "mini-teacher": Shape(192, 512, 4, 6, 2, 96, 10_000.0, 2048, False),
    "text-student": Shape(128, 384, 3, 4, 2, 2048, 10_000.0, 2048, False),
    "text-teacher": Shape(192, 512, 5, 6, 2, 2048, 10_000.0, 2048, False),
    "openpangu-1b": released("openPangu-Embedded-1B"),
    "openpangu-7b": released("openPangu-Embedded-7B"),
}


def tensors(shape: Shape, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and float32 values of all weights, one at a time; each depends on the seed and its own name only."""
    h, f = shape.hidden_size, shape.intermediate_size
    q = h
    kv = h // shape.num_attention_heads * shape.num_key_value_heads
    residual = STD / math.sqrt(2 * shape.num_hidden_layers)

    def normal(name: str, rows: int, columns: int, std: float = STD) -> tuple[str, np.ndarray]:
        rng = np.random.default_rng([seed, *name.encode()])
        return name, rng.standard_normal((rows, columns), np.float32) * np.float32(std)

    yield normal("model.embed_tokens.weight", shape.vocab_size, h)
    for layer in range(shape.num_hidden_layers):
        at = f"model.layers.{layer}."
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            yield normal(f"{at}self_attn.{name}_proj.weight", width, h)
            yield f"{at}self_attn.{name}_proj.bias", np.zeros(width, np.float32)
        yield normal(f"{at}self_attn.o_proj.weight", h, q, residual)
        yield f"{at}self_attn.o_proj.bias", np.zeros(h, np.float32)
        yield normal(f"{at}mlp.gate_proj.weight", f, h)
        yield normal(f"{at}mlp.up_proj.weight", f, h)
        yield normal(f"{at}mlp.down_proj.weight", h, f, residual)
        yield f"{at}input_layernorm.weight", np.ones(h, np.float32)
        yield f"{at}post_attention_layernorm.weight", np.ones(h, np.float32)
    yield "model.norm.weight", np.ones(h, np.float32)
    if not shape.tie_word_embeddings:
        yield normal("lm_head.weight", shape.vocab_size, h)


def to_bytes(value: np.ndarray, dtype: str) -> bytes:
    """Little-endian bytes of a float32 array as float32 or, rounded to nearest even, bfloat16."""
    return tensorfile.from_float32(value, _TYPES[dtype]).tobytes()


def write_safetensors(path: Path, weights: dict[str, tuple[tuple[int, ...], bytes]], dtype: str) -> None:
    """Writes one file in the safetensors format, which numpy alone cannot for want of a bfloat16 type."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in weights.items():
        header[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, data in weights.values():
            f.write(data)


def write_weights(out: Path, shape: Shape, seed: int, dtype: str, shard_bytes: int) -> int:
    """Writes model.safetensors, or numbered shards with their index when it would exceed ``shard_bytes``.

    Returns:
        Number of parameters.
    """
    shard: dict[str, tuple[tuple[int, ...], bytes]] = {}
    files: list[Path] = []
    size = total = parameters = 0
    places: dict[str, int] = {}

    def flush() -> None:
        files.append(out / f"part-{len(files)}")
        write_safetensors(files[-1], shard, dtype)
        shard.clear()

    for name, value in tensors(shape, seed):
        data = to_bytes(value, dtype)
        if size and size + len(data) > shard_bytes:
            flush()
            size = 0
        shard[name] = value.shape, data
        places[name] = len(files)
        size, total, parameters = size + len(data), total + len(data), parameters + value.size
    flush()
    if len(files) == 1:
        files[0].rename(out / "model.safetensors")
        return parameters
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file, name in zip(files, names, strict=True):
        file.rename(out / name)
    write_json(
        out / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": {name: names[i] for name, i in places.items()}},
    )
    return parameters


def special_ids(tokenizer: Path | None) -> dict[str, int]:
    """Ids of padding, begin and end: the tokenizer's, or openPangu's own."""
    if tokenizer is None:
        return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 45892}
    loaded = load_tokenizer(tokenizer)
    if loaded.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer}: it has no end-of-sequence token; set eos_token in its tokenizer_config.json"
        )
    found = {f"{kind}_token_id": getattr(loaded, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    return {
        key: found["eos_token_id"] if key.startswith("pad") and id_ is None else id_
        for key, id_ in found.items()
        if id_ is not None or key.startswith("pad")
    }


def config_of(shape: Shape, ids: dict[str, int], dtype: str) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "architectures": ["PanguEmbeddedForCausalLM"],
        "model_type": "PanguEmbedded",
        **asdict(shape),
        **ids,
        "bias": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": STD,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def make(
    out: Path, shape: Shape, seed: int, dtype: str, tokenizer: Path | None = None, shard_bytes: int = 2 << 30
) -> int:
    """Writes the folder: config.json, generation_config.json, weights, and the tokenizer's files if given.

    Returns:
        Number of parameters.
    """
    if shape.hidden_size % shape.num_attention_heads or shape.num_attention_heads % shape.num_key_value_heads:
        raise UserError(
            f"heads {shape.num_attention_heads} must divide hidden size {shape.hidden_size} and be a "
            f"multiple of key-value heads {shape.num_key_value_heads}"
        )
    ids = special_ids(tokenizer)
    with atomic_folder(out) as folder:
        write_json(folder / "config.json", config_of(shape, ids, dtype))
        write_json(folder / "generation_config.json", {**ids, "do_sample": False})
        if tokenizer:
            # The folder may be a checkpoint: its config and weights are not those of the new one.
            for name in (*TOKENIZER_FILES, *COMPANIONS):
                if (tokenizer / name).is_file():
                    shutil.copyfile(tokenizer / name, folder / name)
        return write_weights(folder, shape, seed, dtype, shard_bytes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files are copied")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    for field in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    ):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, help="in place of the preset's")
    args = parser.parse_args()
    changed = {k: v for k, v in vars(args).items() if k in Shape.__dataclass_fields__ and v is not None}
    shape = Shape(**{**asdict(PRESETS[args.preset]), **changed})
    parameters = make(args.out, shape, args.seed, args.dtype, args.tokenizer)
    print(f"{args.out}: {parameters:,} parameters, {args.dtype}")


if __name__ == "__main__":
    main()
