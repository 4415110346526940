"""Families of checkpoints, one file each: how their ``config.json`` becomes a ``ModelSpec``.

A family combines features of the network (biases, norms of query and key heads, heads of their own size, any rope of
``models/rope.py``), so it is one file here, called like its ``model_type`` (see ``file_of``); only a feature that the
network lacks takes a second. Installed packages add families through the entry point group ``npd_ascend.families``, in
both environments. ``module:function`` is none: a checkpoint's config names its family, and may not name code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from npd_ascend.errors import UserError
from npd_ascend.registry import Registry, nearest

if TYPE_CHECKING:
    from npd_ascend.models.hf_config import Reader
    from npd_ascend.models.spec import ModelSpec

Complete = Callable[["ModelSpec", "Reader"], "ModelSpec"]
"""(what all families share, the config) -> the spec with the family's own features. Raises UserError for a feature that
the network does not have."""
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


FAMILIES: Registry[Family] = Registry("model family", "model_type", "npd_ascend.models.families")


def file_of(model_type: str) -> str:
    """Name of a family's file or entry point: its ``model_type`` in lower case, with ``_`` for what no module may have
    in its name."""
    return re.sub(r"\W", "_", model_type.lower())


def family(
    model_type: str,
    architecture: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    transformers: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Callable[[Complete], Complete]:
    """Decorator that enters a family under its ``model_type``; arguments as ``Family`` has them."""
    return FAMILIES.decorator(
        lambda complete: Family(model_type, architecture, complete, defaults or {}, transformers), file_of(model_type)
    )


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a checkpoint.

    Args:
        config: its ``config.json``.
        where: names the file in messages.

    Raises:
        UserError: no known one.
    """
    name = config.get("model_type")
    found = FAMILIES.get(file_of(name), f"{where}: model_type") if isinstance(name, str) else None
    if found is None or found.model_type != name:
        raise UserError(
            f"{where}: model_type {name!r} is not supported{_why_not(config)}; {_nearest(name)}supported "
            f"are {', '.join(supported())}"
        )
    return found


def supported() -> list[str]:
    """The known values of ``model_type``."""
    own = FAMILIES.all()
    return [own[name].model_type if name in own else name for name in FAMILIES.known()]


def _nearest(name: Any) -> str:
    """For spellings only: a family of another name is another model."""
    return nearest(name, supported(), cutoff=0.7) if isinstance(name, str) else ""


def _why_not(config: dict[str, Any]) -> str:
    if any(config.get(key) for key in _EXPERTS):
        return ": it is a mixture of experts, and the network has dense layers only"
    if str(config.get("model_type")).startswith("gemma"):
        return ": Gemma scales its embeddings and has norms of another form, which the network does not have"
    if isinstance(config.get("text_config"), dict):
        return ": it is more than a language model"
    return ""
