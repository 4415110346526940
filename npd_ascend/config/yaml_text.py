"""YAML by libyaml, which is ten times as fast as PyYAML's own reader; without it (a build from source) the latter."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not valid, or nested too deeply.
    """
    loader = _LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write_yaml(values: Any) -> str:
    """YAML text of plain values, keys in their own order."""
    text: str = yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    return text
