"""Families of checkpoints, one file each: how their ``config.json`` becomes a ``ModelSpec``.

A family combines features of the network (biases, norms of query and key heads, heads of their own size, any rope of
``models/rope.py``), so it is one file here; only a feature that the network lacks takes a second. A package of the
user's adds families through the entry point group ``npd_ascend.families`` (in both environments): a module with the
same decorator.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from npd_ascend.errors import UserError

if TYPE_CHECKING:
    from npd_ascend.models.hf_config import Reader
    from npd_ascend.models.spec import ModelSpec

Complete = Callable[["ModelSpec", "Reader"], "ModelSpec"]
"""(what all families share, the config) -> the spec with the family's own features. Raises UserError for a feature that
the network does not have."""
ENTRY_POINTS = "npd_ascend.families"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


@dataclass(frozen=True)
class Family:
    """A registered family.

    Attributes:
        model_type: as in ``config.json``.
        architecture: the class that transformers and vLLM know it by.
        complete: adds its features to a spec.
        defaults: what transformers' config class takes for a key that is missing, where not what ``ModelSpec`` takes.
        transformers: a config of this family -> one that transformers itself has a class for.
    """

    model_type: str
    architecture: str
    complete: Complete
    defaults: Mapping[str, Any] = field(default_factory=dict)
    transformers: Callable[[dict[str, Any]], dict[str, Any]] = dict


_FAMILIES: dict[str, Family] = {}


def family(model_type: str, architecture: str, *, defaults: Mapping[str, Any] | None = None,
           transformers: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Callable[[Complete], Complete]:
    """Decorator that enters a family under its ``model_type``; arguments as ``Family`` has them."""

    def enter(function: Complete) -> Complete:
        _FAMILIES[model_type] = Family(model_type, architecture, function, defaults or {}, transformers)
        return function

    return enter


def families() -> dict[str, Family]:
    """Those of this package by ``model_type``, and what else has been entered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_FAMILIES.items(), key=lambda item: item[0].lower()))


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a checkpoint.

    Args:
        config: its ``config.json``.
        where: names the file in messages.

    Raises:
        UserError: no known one.
    """
    name = str(config.get("model_type"))
    if name not in families():
        for point in entry_points(group=ENTRY_POINTS):  # takes longer than reading our own
            point.load()
    known = families()
    if name not in known:
        raise UserError(f"{where}: model_type {config.get('model_type')!r} is not supported{_why_not(config)}; "
                        f"supported are {', '.join(known)}")
    return known[name]


def _why_not(config: dict[str, Any]) -> str:
    if any(config.get(key) for key in _EXPERTS):
        return ": it is a mixture of experts, and the network has dense layers only"
    if str(config.get("model_type")).startswith("gemma"):
        return ": Gemma scales its embeddings and has norms of another form, which the network does not have"
    if isinstance(config.get("text_config"), dict):
        return ": it is more than a language model"
    return ""
