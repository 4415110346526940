"""New checkpoints with random weights: where training from scratch, tests and shape checks start."""

from __future__ import annotations

import json
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.models import tensorfile
from npd_ascend.models.families import family_of
from npd_ascend.models.mapping import rules
from npd_ascend.models.spec import ModelSpec
from npd_ascend.store.atomic import atomic_folder

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def initial_checkpoint(
    folder: Path,
    config: dict[str, Any],
    *,
    seed: int = 0,
    dtype: str = "F32",
    std: float = 0.02,
    norm_std: float = 0.0,
    bias_std: float = 0.0,
    shard_bytes: int = 5_000_000_000,
) -> ModelSpec:
    """Writes config.json and random weights, one tensor at a time; the folder appears whole or not at all.

    Matrices are N(0, std²), norm weights N(1, norm_std²), biases N(0, bias_std²). A tensor's values depend on the seed
    and its name alone. ``architectures``, which vLLM asks for, is added where the config lacks it.

    Args:
        folder: to be made or replaced.
        config: Hugging Face config of a supported architecture.
        seed: root of all values.
        dtype: ``F32``, ``F16`` or ``BF16``.
        std, norm_std, bias_std: standard deviations.
        shard_bytes: most bytes a file; more than one file get an index.

    Raises:
        UserError: the config is not usable.
    """
    spec = ModelSpec.from_config(config, {}, "config")
    config = {"architectures": [family_of(config, "config").architecture], **config}
    shapes = {name: shape for rule in rules(spec) for name, shape in zip(rule.hf, rule.shapes, strict=True)}

    def values(name: str) -> Array:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = rng.standard_normal(shapes[name], dtype=np.float32)
        if name.endswith("norm.weight"):
            return 1 + np.float32(norm_std) * noise
        noise *= np.float32(bias_std if name.endswith("bias") else std)
        return noise

    files = _shards(shapes, _BYTES[dtype], shard_bytes)
    total = sum(map(prod, shapes.values())) * _BYTES[dtype]
    with atomic_folder(Path(folder)) as out:
        (out / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        if len(files) == 1:
            places = {tensorfile.SINGLE: files[0]}
        else:
            places = {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": f for i, f in enumerate(files)}
            index = {"metadata": {"total_size": total}, "weight_map": {n: p for p, f in places.items() for n in f}}
            (out / tensorfile.INDEX).write_text(json.dumps(index, indent=1) + "\n")
        for place, names in places.items():
            tensorfile.write(out / place, [(n, dtype, shapes[n]) for n in names], values)
    return spec


def _shards(shapes: dict[str, tuple[int, ...]], width: int, limit: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        more = prod(shape) * width
        if files[-1] and size + more > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += more
    return files
