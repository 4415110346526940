"""YAML plus ``--set a.b=c`` into a validated ``Config``, and every mistake into one readable line."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from npd_ascend.config.paths import beside, check_inputs
from npd_ascend.config.schema import Config
from npd_ascend.config.yaml_text import read_yaml, write_yaml
from npd_ascend.errors import UserError

_Section = TypeVar("_Section", bound=BaseModel)
_TAGS = ("shared", "split")  # of device.placement: which of its two forms was tried
_SHOWN = 6  # mistakes named in one message
_RENAMED = {
    "select.metric": "called select.filter now; rename it",
    "evaluate.at_sync": "called evaluate.at_refresh now; rename it",
    "report.tensorboard": "gone; write report.monitors: [tensorboard]",
}
_WORDS = {
    "model_type": "expected a section of settings",
    "list_type": "expected a list, e.g. [a, b]",
    "path_type": "expected a path",
    "string_type": "expected text; quote it if it looks like a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
}


def load_config(path: str | Path, overrides: list[str] | None = None, inputs: bool = False) -> Config:
    """Reads a YAML file, applies ``a.b=c`` overrides in order, validates.

    Relative paths of inputs are looked for in the working directory first, then beside the file (``config.paths``).

    Args:
        path: the YAML file.
        overrides: ``section.key=value``; the value is read as YAML.
        inputs: relative paths of inputs must exist.

    Raises:
        UserError: unreadable file, bad YAML, unknown key (with the nearest valid one), bad value, contradiction; with
            ``inputs``, one that is not there.
    """
    config = parse_config(read_tree(path, overrides), str(path))
    if inputs:
        check_inputs(config, Path(path).parent)
    return config


def read_tree(path: str | Path, overrides: list[str] | None = None, kind: type[BaseModel] = Config) -> dict[str, Any]:
    """The plain values of a YAML file after ``a.b=c`` overrides, not validated.

    Args:
        path: the YAML file.
        overrides: as in ``load_config``.
        kind: what they are to become; says which of them are paths of inputs.

    Raises:
        UserError: unreadable file, bad YAML, or an override that is none.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"config {path} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    try:
        tree = read_yaml(text)
    except (yaml.YAMLError, ValueError) as e:
        if "nesting depth" in str(getattr(e, "problem", "")):  # libyaml's own limit
            raise UserError(f"config {path}: nested too deeply") from None
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"config {path}{where}: not valid YAML ({getattr(e, 'problem', None) or e})") from None
    except RecursionError:
        raise UserError(f"config {path}: nested too deeply") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: expected sections such as 'run:' and 'models:', found {type(tree).__name__}")
    tree = beside(tree, path.parent, kind)
    for item in overrides or []:
        _override(tree, item)
    return tree


def apply(tree: dict[str, Any], *settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` with ``section.key: value`` pairs put in, later ones over earlier ones.

    Raises:
        UserError: a key leads through a value.
    """
    out = copy.deepcopy(tree)
    for pairs in settings:
        for key, value in pairs.items():
            _put(out, key.split("."), value, key)
    return out


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """Validates a tree of plain values; ``where`` names its source in errors."""
    return validated(Config, tree, where)


def validated(kind: type[_Section], tree: dict[str, Any], where: str) -> _Section:
    """A section of settings from plain values; ``where`` names their source in errors.

    Raises:
        UserError: the first mistakes, in one line.
    """
    try:
        config = kind.model_validate(tree)
    except ValidationError as e:
        lines = [" ".join(_explain(err, kind).split()) for err in e.errors()]
        more = f" (and {len(lines) - 1} more: {'; '.join(lines[1:_SHOWN])})" if len(lines) > 1 else ""
        raise UserError(f"config {where}: {lines[0]}{more}") from None
    for key, text in _texts(config.model_dump()):
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"config {where}: {key} holds a character that no text or path may have (got {text!r})")
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, with every default written out."""
    return write_yaml(config.model_dump(mode="json"))


def _override(tree: dict[str, Any], item: str) -> None:
    key, eq, raw = item.partition("=")
    parts = key.strip().split(".")
    if not eq or not all(parts):
        raise UserError(f"--set {item}: expected section.key=value, e.g. --set train.lr=2e-5")
    try:
        value = read_yaml(raw)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {item}: the value is not valid YAML") from None
    # YAML 1.1 reads 2e-5 as text; numbers are meant as numbers.
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    _put(tree, parts, value, f"--set {item}")


def _put(tree: dict[str, Any], parts: list[str], value: Any, where: str) -> None:
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise UserError(f"{where}: {part} is a value, not a section")
        node = child
    node[parts[-1]] = value


def _explain(err: Any, kind: type[BaseModel]) -> str:
    loc = [_cut(str(x)) for x in err["loc"] if x not in _TAGS]
    key = ".".join(loc)
    if err["type"] == "extra_forbidden" and key in _RENAMED:
        return f"{key} is {_RENAMED[key]}"
    if err["type"] == "extra_forbidden":
        section = _section(loc[:-1], kind)
        near = difflib.get_close_matches(loc[-1], list(section.model_fields), n=1, cutoff=0.5) if section else []
        hint = (
            f"; did you mean {'.'.join([*loc[:-1], near[0]])}?"
            if near
            else (f"; valid here: {', '.join(section.model_fields)}" if section else "")
        )
        return f"unknown key {key}{hint}"
    if err["type"] == "missing":
        return f"{key} is missing"
    text = _WORDS.get(err["type"]) or err["msg"].removeprefix("Value error, ")
    value = err.get("input")
    shown = f" (got {_cut(repr(value))})" if isinstance(value, str | int | float | bool) else ""
    return f"{key}: {text}{shown}" if key else text


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts and paths below ``value`` with their keys."""
    if isinstance(value, str | Path):
        yield key, str(value)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _texts(v, f"{key}.{k}" if key else str(k))
    elif isinstance(value, list):
        for v in value:
            yield from _texts(v, key)


def _cut(text: str, at_most: int = 80) -> str:
    return text if len(text) <= at_most else text[:at_most] + "..."


def _section(loc: list[str], kind: type[BaseModel]) -> type[BaseModel] | None:
    model: Any = kind
    for part in loc:
        field = model.model_fields.get(part)
        model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    return cast(type[BaseModel], model)
