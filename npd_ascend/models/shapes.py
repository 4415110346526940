"""Shapes of public checkpoints by name, for what is asked before the folders are there.

``shapes.json`` holds the fields of each ``config.json`` that decide the network, and ``tokenizer_size`` where the
logits are wider than the tokenizer. Sources: the released config of openPangu-Embedded-7B; for the 1B its model card
and the 340 tensors of its published conversions, which leave tied embeddings and biases of all four projections of
attention; the model cards of Qwen2.5. Names with a folder are models that a tool of this project makes there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError
from npd_ascend.models.hf_config import read_config
from npd_ascend.models.spec import ModelSpec


@cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """All of them by the checkpoint's name, without suffixes such as ``-Instruct``."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def known_shape(name: str) -> dict[str, Any] | None:
    """The shape of a checkpoint called so, with or without a suffix; None: not known."""
    names = [n for n in known_shapes() if name == n or name.startswith(n + "-")]
    return dict(known_shapes()[max(names, key=len)]) if names else None


def shape_of(folder: Path) -> tuple[dict[str, Any], bool]:
    """The ``config.json`` of a checkpoint folder, or the known shape of its name while there is no folder.

    Returns:
        The config, and whether it was built in.

    Raises:
        UserError: neither is there, or the config cannot be read.
    """
    if (config := read_config(folder / "config.json")) is not None:
        return config, False
    if (known := _known(folder)) is not None:
        return known, True
    raise UserError(
        f"{folder}: no config.json there, and {folder.name} is not one of the checkpoints whose shape is "
        f"known ({', '.join(known_shapes())})"
    )


def planned_spec(folder: Path) -> ModelSpec:
    """Architecture of a checkpoint that may still be missing.

    Raises:
        UserError: as ``shape_of`` and ``ModelSpec.from_folder``.
    """
    config, built_in = shape_of(folder)
    return ModelSpec.from_config(config, {}, str(folder)) if built_in else ModelSpec.from_folder(folder)


def missing(*folders: Path) -> list[Path]:
    """Those that are not there and whose shape is known: it stands in for them."""
    return [folder for folder in dict.fromkeys(folders) if _known(folder) is not None]


def said_of(folders: Sequence[Path]) -> str:
    """One line on missing checkpoints."""
    return f"not there, so the built-in shape of its name is used: {', '.join(map(str, folders))}"


def _known(folder: Path) -> dict[str, Any] | None:
    if folder.exists():
        return None
    return known_shape(folder.name) or known_shape(f"{folder.parent.name}/{folder.name}")
