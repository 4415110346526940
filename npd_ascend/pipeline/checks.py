"""What is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from npd_ascend.config import Config, dump_config
from npd_ascend.config.marks import SPEED
from npd_ascend.config.schema import Section
from npd_ascend.config.yaml_text import read_yaml
from npd_ascend.errors import UserError
from npd_ascend.ops.inputs import check_models, check_names
from npd_ascend.store.identity import SCHEMA_VERSION
from npd_ascend.store.layout import RunDir


def check_config(config: Config) -> None:
    """Names that the schema cannot know, and the two models: they must speak the same token ids.

    Raises:
        UserError: an unknown filter, divergence or checker, a checkpoint that is missing or not what its config.json
            says, or models that do not fit together.
    """
    check_names(config)
    check_models(config)


def check_run_dir(config: Config, run: RunDir, redo: bool) -> None:
    """The run directory must be empty or hold a run of the same configuration; then stores the configuration.

    Args:
        redo: accept a changed configuration; stages whose inputs changed will be made again.

    Raises:
        UserError: it holds something else.
    """
    state = run.read_state()
    if state and state.get("schema") != SCHEMA_VERSION:
        raise UserError(
            f"{run.root}: made by format version {state.get('schema')}, this program writes {SCHEMA_VERSION}; "
            "use a new run.dir"
        )
    if run.config.is_file():
        old = _stored(run.config)
        if old is None and not redo:
            raise UserError(
                f"{run.config}: damaged; restore it, or give --redo to go on with these settings (what does not "
                "belong to them is made again)"
            )
        changed = _differences(old, read_yaml(dump_config(config)))
        if changed and not redo:
            raise UserError(
                f"{run.root} holds a run with {'; '.join(changed)}. Use a new run.dir, the old settings, or "
                "--redo to make again what depends on the change"
            )
    elif any(p.name not in (".lock", ".hashes.json") for p in run.root.iterdir()):
        raise UserError(f"{run.root}: not empty and not a run directory (no config.yaml); choose another run.dir")
    run.write_config(dump_config(config))


def _stored(path: Path) -> dict[str, Any] | None:
    """The stored configuration as plain values; None when it is damaged."""
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
        return tree if isinstance(tree, dict) else None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _differences(old: Any, new: Any, kind: type[Section] | None = Config, at: str = "") -> list[str]:
    """Changed settings as ``key = old, now new``, but for those that change nothing that the run makes."""
    if old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [f"{at} = {old}, now {new}"]
    fields = kind.model_fields if kind else {}
    found = []
    for key in [*new, *(k for k in old if k not in new)]:
        field = fields.get(key)
        if field is not None and SPEED in field.metadata:
            continue
        inner = field.annotation if field is not None else None
        section = inner if isinstance(inner, type) and issubclass(inner, Section) else None
        found += _differences(old.get(key), new.get(key), section, f"{at}.{key}" if at else key)
    return found
