"""What is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from npd_ascend.config import Config, dump_config
from npd_ascend.data.compat import check_pair
from npd_ascend.errors import UserError
from npd_ascend.evaluate.checkers import get_checker, load_checker_data
from npd_ascend.models.mapping import heads_of, share_of
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.weights import checked
from npd_ascend.objectives.registry import find_divergences, find_token_weight
from npd_ascend.select.registry import find as find_filter
from npd_ascend.store.identity import SCHEMA_VERSION
from npd_ascend.store.layout import RunDir

# Settings that may change between two starts of one run without changing what it makes.
_FREE = (
    "run.dir",
    "rollout.workers",
    "rollout.tensor_parallel",
    "rollout.max_num_seqs",
    "rollout.kv_cache_gib",
    "rollout.memory_fraction",
    "rollout.keep_alive",
    "rollout.enforce_eager",
    "rollout.max_failures",
    "rollout.hang_seconds",
    "annotate.workers",
    "annotate.tensor_parallel",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "select.warn_keep_below",
    "device",
    "report",
)


def check_config(config: Config) -> None:
    """Names that the schema cannot know, and the two models: they must speak the same token ids.

    Raises:
        UserError: an unknown filter, divergence or checker, a checkpoint that is missing or not what its config.json
            says, or models that do not fit together.
    """
    find_filter(config.select.metric)
    find_divergences(config.train.loss)
    find_token_weight(config.train.loss)
    if config.evaluate.prompts:
        get_checker(config.evaluate.checker)
        load_checker_data(config.evaluate.checker_data)
    models = config.models
    asked = config.needs_teacher or config.rollout.source == "teacher"
    teacher = models.teacher if asked else models.student
    check_pair(teacher, models.student, models.tokenizer, models.trust_remote_code, config.data)
    _check_cuts(config, ModelSpec.from_folder(teacher), ModelSpec.from_folder(models.student))
    for folder in dict.fromkeys((models.student, teacher)):
        width = check_checkpoint(folder).vocab_size
        if asked and config.annotate.k > width:
            raise UserError(f"annotate.k is {config.annotate.k} but the logits of {folder} cover {width} ids; lower it")


def _check_cuts(config: Config, teacher: ModelSpec, student: ModelSpec) -> None:
    """Models that tensor parallelism cuts must come out even, and so must heads that context parallelism deals out."""
    t = config.train
    for key, size, spec, context in (
        ("annotate", config.annotate.tensor_parallel if config.needs_teacher else 1, teacher, 1),
        ("annotate", config.annotate_student.tensor_parallel if config.needs_scores else 1, student, 1),
        ("train", t.tensor_parallel, student, t.context_parallel),
    ):
        try:
            heads_of(share_of(spec, size), context)
        except UserError as e:
            raise UserError(f"{key}.{e}") from None


def check_checkpoint(folder: Path) -> ModelSpec:
    """Config and tensor headers of a checkpoint: better now than after the rollouts. Values are looked at on loading.

    Raises:
        UserError: unsupported, or its tensors are missing, too many, or of other shapes.
    """
    spec = ModelSpec.from_folder(folder)
    checked(spec, folder)
    return spec


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
        changed = _differences(old, yaml.safe_load(dump_config(config)))
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
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tree if isinstance(tree, dict) else None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Changed settings as ``key = old, now new``."""
    if at in _FREE or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for key in [*new, *(k for k in old if k not in new)]
            for d in _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    return [f"{at} = {old}, now {new}"]
