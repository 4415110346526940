"""What transformers 4 and 5 write differently into a checkpoint's JSON files, in the form that both read.

Version 5 keeps the base and the scaling of the rotary angles in ``rope_parameters`` and the type of the weights in
``dtype``; version 4 takes its default base, 10,000, and no scaling for such a file and says nothing. Of a tokenizer it
names the generic class ``TokenizersBackend`` and lists ``extra_special_tokens``, over which version 4 stops.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from npd_ascend.store.atomic import read_object, write_json

GENERIC = "PreTrainedTokenizerFast"
"""The class of a ``tokenizer.json`` in version 4; version 5 knows ``TokenizersBackend`` by this name as well."""


def shared_config(config: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` for both: what version 5 has moved is in the old place too."""
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    scaled = rope.get("rope_type", "default") != "default"
    old = {
        "rope_theta": rope.get("rope_theta"),
        "torch_dtype": config.get("dtype"),
        "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"} if scaled else None,
    }
    return config | {k: v for k, v in old.items() if v is not None and config.get(k) is None}


def shared_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` for both: version 4's names, which version 5 translates."""
    out = dict(config)
    if isinstance(config.get("extra_special_tokens"), list):
        listed = [*(config.get("additional_special_tokens") or []), *out.pop("extra_special_tokens")]
        out["additional_special_tokens"] = [t for i, t in enumerate(listed) if t not in listed[:i]]
    if config.get("tokenizer_class") == "TokenizersBackend":
        out["tokenizer_class"] = GENERIC
    return out


def make_readable(folder: Path) -> None:
    """Rewrites those of a folder's files that one of the versions would not read, or would read otherwise."""
    forms: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "config.json": shared_config,
        "tokenizer_config.json": shared_tokenizer_config,
    }
    for name, form in forms.items():
        value = read_object(folder / name)
        if value and form(value) != value:
            write_json(folder / name, form(value))
