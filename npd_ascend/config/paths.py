"""Relative paths of inputs in a configuration file: below the working directory, else beside the file.

Outputs (``run.dir``, ``study.dir``) and what ``--set`` gives are below the working directory and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from npd_ascend.config.marks import SPEED, TEMPLATE
from npd_ascend.errors import UserError

_NO_PATH = re.compile(r"^hf:|^\w+://|[*?\[]")
"""A name of the hub, an address or a pattern: found by whoever reads it."""
_TEMPLATES = ("auto", "student", "teacher")
Tree = dict[str, Any]


def beside(tree: Tree, folder: Path, kind: type[BaseModel]) -> Tree:
    """The tree with inputs that are not below the working directory, but below ``folder``, named by absolute paths.

    Args:
        tree: plain values of a configuration file.
        folder: of that file.
        kind: what the tree is to become.
    """
    from npd_ascend.config.schema import Config

    # A study's ``set`` holds keys of a run.
    inputs = {*input_keys(kind), *input_keys(Config)}

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            # Keys of ``set`` are dotted keys of their own.
            return {
                k: walk(v, str(k) if key.rpartition(".")[2] == "set" else f"{key}.{k}".lstrip("."))
                for k, v in value.items()
            }
        if isinstance(value, list):
            return [walk(v, key) for v in value]
        if isinstance(value, str) and _pattern(key, inputs) and _relative(value) and not _exists(value):
            found = os.path.abspath(folder / value)
            return found if _exists(found) else value
        return value

    return {key: walk(value, key) for key, value in tree.items()}


def check_inputs(config: BaseModel, folder: Path) -> None:
    """Every relative input of a configuration is there.

    Raises:
        UserError: one is not; the line names both places.
    """
    for name in input_keys(type(config)):
        for key, path in _paths(config, name.split(".")):
            if _relative(path) and not _exists(path):
                raise UserError(
                    f"{key}: {path} is neither in the working directory ({Path.cwd()}) nor beside the "
                    f"configuration ({os.path.abspath(folder)})"
                )


def _paths(value: Any, parts: list[str], at: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and paths that are below ``value`` at the key of these parts; ``*`` matches any name."""
    if not parts:
        given = value if isinstance(value, list) else [value] if value is not None else []
        yield from ((at, str(path)) for path in given)
        return
    first, *rest = parts
    found = value.items() if first == "*" else [(first, getattr(value, first))]
    for name, inner in found:
        yield from _paths(inner, rest, f"{at}.{name}" if at else name)


def input_keys(kind: type[BaseModel], at: str = "") -> Iterator[str]:
    """Dotted keys of the paths that a section and those within it read; ``*`` matches any name."""
    for name, field in kind.model_fields.items():
        key = f"{at}.{name}" if at else name
        if SPEED in field.metadata:
            continue
        sections = [t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        named = ".*" if str(field.annotation).startswith("dict") else ""
        for section in sections:
            yield from input_keys(section, key + named)
        if not sections and _is_input(name, field):
            yield key


def _is_input(name: str, field: FieldInfo) -> bool:
    return TEMPLATE in field.metadata or (Path in _types(field.annotation) and name != "dir")


def _types(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [t for arg in inner for t in _types(arg)] if inner else [annotation]


def _pattern(key: str, inputs: set[str]) -> bool:
    if key in inputs:
        return True
    parts = key.split(".")
    return any(
        len(p) == len(parts) and all(a in ("*", b) for a, b in zip(p, parts, strict=True))
        for p in (k.split(".") for k in inputs)
    )


def _exists(path: str) -> bool:
    """Whether it is there; of ``folder:split``, the folder."""
    return os.path.lexists(path) or (":" in path and os.path.lexists(path.rpartition(":")[0]))


def _relative(path: str) -> bool:
    return bool(path) and not os.path.isabs(path) and path not in _TEMPLATES and not _NO_PATH.search(path)
