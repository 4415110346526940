"""Depth pruning: a checkpoint with some of another's layers, copied one tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import Entry
from npd_ascend.models.weights import checked, finite, rewrite
from npd_ascend.store.atomic import write_json
from npd_ascend.store.identity import check_seals

RECORD = "pruning.json"
"""What a pruned folder says of its origin."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def most_influential(influence: Array, keep: int) -> list[int]:
    """Numbers of the ``keep`` layers of greatest influence, ascending; of equal ones the earlier."""
    return sorted(np.argsort(-influence, kind="stable")[:keep].tolist())


def check_layers(layers: Sequence[int], spec: ModelSpec, source: Path) -> None:
    """Refuses what is no ascending choice of a model's layers.

    Raises:
        UserError: none, one twice, not ascending, or out of range.
    """
    if not layers or list(layers) != sorted(set(layers)):
        raise UserError(f"--layers {','.join(map(str, layers))}: expected numbers in ascending order, each once")
    wrong = [n for n in layers if not 0 <= n < spec.num_layers]
    if wrong:
        raise UserError(
            f"--layers: there is no layer {wrong[0]}; {source} has {spec.num_layers}, from 0 to {spec.num_layers - 1}"
        )


def prune(source: Path, layers: Sequence[int], out: Path, influence: Array | None = None) -> ModelSpec:
    """Writes a folder with the chosen layers of a checkpoint and everything else of it.

    Tensors keep their types and values to the bit, and stand in the files in which they stood; files without any are
    left out. ``pruning.json`` says which layers were kept.

    Args:
        source: Hugging Face folder, sharded or not.
        layers: numbers of the layers, ascending.
        out: folder to make or replace; it appears whole or not at all.
        influence: [layers of the source]; is written down beside the choice.

    Returns:
        The new architecture.

    Raises:
        UserError: the source is not usable, or the choice is none of its layers.
    """
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: source and target are the same folder")
    check_seals(source)
    spec = ModelSpec.from_folder(source)
    found = checked(spec, source)
    check_layers(layers, spec, source)
    place = {old: new for new, old in enumerate(layers)}
    origin = {new: entry for name, entry in found.items() if (new := _renamed(name, place))}
    layout = _layout(origin)

    def declare(folder: Path) -> None:
        _declare(folder, layers, layout)
        write_json(
            folder / RECORD,
            {
                "source": source.resolve().name,
                "layers": list(layers),
                "of": spec.num_layers,
                **({} if influence is None else {"block_influence": influence.tolist()}),
            },
        )

    rewrite(out, source, layout, None, lambda name: finite(origin[name]), declare)
    return replace(spec, num_layers=len(layers))


def _renamed(name: str, place: dict[int, int]) -> str | None:
    """The tensor's name in the new checkpoint; None: it is of a layer that goes."""
    match = _LAYER.match(name)
    if match is None:
        return name
    new = place.get(int(match[1]))
    return None if new is None else f"model.layers.{new}.{name[match.end() :]}"


def _layout(origin: dict[str, Entry]) -> dict[str, Entry]:
    """The new tensors, in files that are numbered without gaps."""
    files = sorted({e.path for e in origin.values()})
    names = (
        [tensorfile.SINGLE]
        if len(files) == 1
        else [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    )
    new = dict(zip(files, names, strict=True))
    return {name: replace(e, name=name, path=e.path.with_name(new[e.path])) for name, e in origin.items()}


def _declare(folder: Path, layers: Sequence[int], layout: dict[str, Entry]) -> None:
    """Makes config.json and the index say what the folder holds."""
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | _of_layers(config, layers))
    index = folder / tensorfile.INDEX
    places = {name: entry.path.name for name, entry in layout.items()}
    if len(set(places.values())) == 1:
        index.unlink(missing_ok=True)
        return
    size = sum(e.stop - e.start for e in layout.values())
    write_json(index, {"metadata": {"total_size": size}, "weight_map": places})


def _of_layers(config: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The keys that speak of layers."""
    changed: dict[str, Any] = {"num_hidden_layers": len(layers)}
    if isinstance(config.get("layer_types"), list):
        changed["layer_types"] = [config["layer_types"][i] for i in layers]
    if isinstance(config.get("max_window_layers"), int):  # layers from there on have a window; Qwen's default is all
        changed["max_window_layers"] = sum(i < config["max_window_layers"] for i in layers)
    return changed
