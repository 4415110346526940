"""Typed access to the values of a checkpoint's ``config.json``, with one clear line for a wrong one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npd_ascend.errors import UserError

_LARGEST = 2**53
"""Counts stay exact as floats."""


class Reader:
    """Values of a JSON object by key; but for switches null counts as missing.

    Args:
        config: the object.
        where: names it in messages.
    """

    def __init__(self, config: Mapping[str, Any], where: str):
        self.config, self.where = config, where

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1.

        Raises:
            UserError: it is something else, or missing without a default.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
            raise UserError(f"{self.where}: {key} is {value!r}, expected a whole number of at least 1")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive number.

        Raises:
            UserError: as ``count``.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
            raise UserError(f"{self.where}: {key} is {value!r}, expected a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Whether a switch is on; null is off, as in transformers."""
        return bool(self.config.get(key, default))

    def _value(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where}: {key} is missing")
        return value


def read_config(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file.

    Raises:
        UserError: it is not readable, or no object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: not readable as JSON ({e})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value
