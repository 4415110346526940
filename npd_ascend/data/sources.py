"""Which files a name under ``data.prompts`` means: a file, a folder, a split of a data set, one of the hub.

Nothing is downloaded: a run starts many processes, and nodes with NPUs often have no network. A data set of the hub is
read from the cache of huggingface_hub, where ``hf download`` puts it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from npd_ascend.config.yaml_text import read_yaml
from npd_ascend.errors import UserError

EXPECTED = ".jsonl or .json (also .gz, .zst), .csv, .tsv, .parquet or .arrow"
HUB = "hf:"
_COMPRESSED = (".gz", ".zst")
_KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_ABOUT = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
"""Files of the ``datasets`` library that speak of the data beside them."""
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_CONFIGS = ("default", "main")
_MOST_FILES = 100_000
_README = 1 << 20  # characters that are looked at


class NoPromptFile(UserError):
    """A prompt file is not there."""


def kind_of(path: Path) -> str | None:
    """``json``, ``csv``, ``parquet`` or ``arrow``, by the name; None: no prompt file."""
    name = path.name.lower()
    packed = next((s for s in _COMPRESSED if name.endswith(s)), "")
    kind = _KINDS.get(Path(name.removesuffix(packed)).suffix)
    return None if packed and kind not in ("json", "csv") else kind


def expand(names: Sequence[Path | str], split: str = "train") -> list[Path]:
    """The files that are read.

    Args:
        names: files; folders; ``folder:split``; ``hf:org/name``, ``hf:org/name/config:split``.
        split: the one that is taken where a name has several and says nothing.

    Raises:
        UserError: nothing readable is there, or it is not clear which of several parts is meant.
    """
    found: list[Path] = []
    for name in map(str, names):
        try:
            found += _hub(name, split) if name.startswith(HUB) else _local(Path(name), split)
        except OSError as e:  # a folder that may not be listed, a name too long
            raise UserError(f"prompt file {name}: cannot be read ({e.strerror})") from None
    if not found:
        raise UserError("no prompt files are given; list at least one")
    return found


def _local(path: Path, split: str) -> list[Path]:
    if path.is_dir():
        return _folder(path, None, split)
    base, colon, asked = str(path).rpartition(":")
    if colon and asked and not path.exists() and Path(base).is_dir():
        return _folder(Path(base), asked, split)
    if not path.exists():
        raise NoPromptFile(f"prompt file {path}: no such file")
    if not kind_of(path):
        raise UserError(f"prompt file {path}: unknown kind of file; expected {EXPECTED}")
    return [path]


def _folder(path: Path, asked: str | None, split: str) -> list[Path]:
    """A folder of files means all of them; one of ``datasets`` for a split."""
    saved = _saved(path, asked, split)
    if saved is not None:
        return saved
    inside = sorted(p for p in path.iterdir() if p.is_file() and _is_data(p))
    if inside and asked is None:
        return inside
    layout = _Layout.of(path)
    if not layout.configs:
        raise UserError(f"{path}: no prompt files in this folder; expected {EXPECTED}")
    return layout.files(str(path), None, asked, split)


def _is_data(path: Path) -> bool:
    return kind_of(path) is not None and path.name not in _ABOUT


# ---- folders that datasets.save_to_disk has written


def _saved(path: Path, asked: str | None, split: str) -> list[Path] | None:
    """Arrow files of ``save_to_disk``; None: the folder is none."""
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(_plain(s) for s in splits):
            raise UserError(f"{path / 'dataset_dict.json'}: lists no splits; save the data set again")
        chosen = _choose(str(path), "splits", splits, asked, (split,), f"{path}:")
        return _saved(path / chosen, None, split) or _folder(path / chosen, None, split)
    if asked is not None or not (path / "state.json").is_file():
        return None
    files = _json(path / "state.json").get("_data_files")
    if not isinstance(files, list):
        return None  # a state.json of another program
    names = [f.get("filename") if isinstance(f, dict) else None for f in files]
    if not names or not all(map(_plain, names)):
        raise UserError(f"{path / 'state.json'}: lists no data files; save the data set again")
    for name in names:
        if not (path / str(name)).is_file():
            raise UserError(
                f"{path / str(name)}: no such file, but state.json beside it names it; copy the whole folder"
            )
    return [path / str(name) for name in names]


def _plain(name: Any) -> bool:
    """Whether it is the name of something in the same folder, and nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        reason = "not an object"
    except (ValueError, RecursionError) as e:
        reason = str(e)
    raise UserError(f"{path}: not readable as JSON ({reason})")


# ---- folders in the layout of the hub


@dataclass
class _Layout:
    """A folder in the layout of the hub.

    Attributes:
        configs: files of each split of each configuration.
        first: configurations that are taken where none is named, in this order.
    """

    configs: dict[str, dict[str, list[Path]]]
    first: Sequence[str] = field(default=_CONFIGS)

    @classmethod
    def of(cls, root: Path) -> _Layout:
        """By the README's ``configs``, else by the names of folders and files, as the hub does."""
        files = {p.relative_to(root).as_posix(): p for p in _walk(root)}
        declared = _declared(root)
        if declared is not None:
            first = [name for name, of in declared.items() if of.get("default") is True]
            found = {name: _match(of, files) for name, of in declared.items()}
            return cls({name: splits for name, splits in found.items() if splits}, (*first, *_CONFIGS))
        configs: dict[str, dict[str, list[Path]]] = {}
        for name in sorted(files):
            splits = configs.setdefault(_config_of(name), {})
            splits.setdefault(_split_of(name), []).append(files[name])
        return cls(configs)

    def files(self, name: str, config: str | None, asked: str | None, split: str) -> list[Path]:
        """Files of a split; ``name`` of the data set is for messages."""
        config = _choose(name, "configurations", self.configs, config, self.first, f"{name}/")
        whole = f"{name}/{config}" if len(self.configs) > 1 else name
        splits = self.configs[config]
        return splits[_choose(whole, "splits", splits, asked, (split,), f"{whole}:")]


def _choose(name: str, what: str, there: Collection[str], asked: str | None, first: Sequence[str], prefix: str) -> str:
    """The one that is asked for, else the first of ``first`` that is there, else the only one."""
    shown = ", ".join(sorted(map(str, there))) or "none"
    if asked is not None:
        if asked not in there:
            raise UserError(f"{name}: it has no {asked!r}; its {what} are {shown}")
        return asked
    for candidate in first:
        if candidate in there:
            return candidate
    if len(there) == 1:
        return next(iter(there))
    raise UserError(f"{name}: its {what} are {shown}; name one, e.g. {prefix}{min(there, default='train')}")


def _walk(root: Path) -> Iterator[Path]:
    seen = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for path in (Path(folder) / n for n in names):
            if _is_data(path) and path.is_file():  # not a link to a blob that was not downloaded
                seen += 1
                if seen > _MOST_FILES:
                    raise UserError(f"{root}: more than {_MOST_FILES:,} files; name the ones that are meant")
                yield path


def _config_of(name: str) -> str:
    first, *rest = name.split("/")
    return first if rest and first != "data" and first.lower() not in _WORDS else "default"


def _split_of(name: str) -> str:
    """As the hub: ``train-00000-of-00003``, or a word for it in the name of the file or of a folder."""
    *folders, stem = name.lower().split("/")
    if sharded := re.match(r"(\w+(?:[.-]\w+)*?)-\d{5}-of-\d{5}\b", stem):
        return sharded[1]
    for part in (stem.partition(".")[0], *reversed(folders)):
        for word in re.split(r"[^a-z]+", part):
            if word in _WORDS:
                return _WORDS[word]
    return "train"


def _declared(root: Path) -> dict[str, dict[str, Any]] | None:
    """Configurations by name, as the head of README.md has them; None: it says nothing of files."""
    try:
        with open(root / "README.md", encoding="utf-8", errors="replace") as f:
            text = f.read(_README)
        head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        configs = read_yaml(head[1]).get("configs") if head else None
    except (OSError, yaml.YAMLError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(configs, list):
        return None
    found = {str(c.get("config_name", "default")): c for c in configs if isinstance(c, dict) and "data_files" in c}
    return found or None


def _match(config: dict[str, Any], files: dict[str, Path]) -> dict[str, list[Path]]:
    """Files of each split; patterns are matched against what is in the folder, so they lead nowhere else."""
    splits: dict[str, list[Path]] = {}
    folder = config.get("data_dir")
    for split, patterns in _patterns(config["data_files"]):
        for pattern in patterns:
            whole = f"{folder}/{pattern}" if isinstance(folder, str) else pattern
            for name in sorted(files):
                if _matches(name, whole.removeprefix("./")):
                    splits.setdefault(split or _split_of(name), []).append(files[name])
    return {split: list(dict.fromkeys(found)) for split, found in splits.items()}


def _patterns(data_files: Any) -> Iterator[tuple[str | None, list[str]]]:
    """(split or None, patterns) in all forms that a README may use."""
    items: Iterable[Any] = data_files if isinstance(data_files, list) else [data_files]
    for item in items:
        if isinstance(item, str):
            yield None, [item]
        elif isinstance(item, dict):
            path = item.get("path")
            yield (
                str(item.get("split", "train")),
                [p for p in (path if isinstance(path, list) else [path]) if isinstance(p, str)],
            )


def _matches(name: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, re.sub(r"\*\*/?", "*", pattern))
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


# ---- the hub's cache


def _hub(name: str, split: str) -> list[Path]:
    """``hf:org/name[/config][:split]``."""
    whole, _, asked = name.removeprefix(HUB).partition(":")
    parts = whole.split("/")
    if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"[\w.-]+", p) and p not in (".", "..") for p in parts):
        raise UserError(f"{name}: expected hf:org/name, hf:org/name/config or hf:org/name/config:split")
    repository, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    root = _snapshot(name, repository)
    if config is None and (saved := _saved(root, asked or None, split)) is not None:
        return saved
    layout = _Layout.of(root)
    if not layout.configs:
        raise UserError(
            f"{name}: no files of a known kind in {root}; if the data set is a loading script, take its "
            f"Parquet files: {_command(repository)} --revision refs/convert/parquet"
        )
    return layout.files(f"{HUB}{repository}", config, asked or None, split)


def _command(repository: str) -> str:
    return f"hf download {repository} --repo-type dataset"


def _snapshot(name: str, repository: str) -> Path:
    """The folder of the revision that was downloaded last."""
    cache = _cache()
    home = cache / f"datasets--{repository.replace('/', '--')}"
    for ref in ("refs/main", "refs/refs/convert/parquet"):
        if (home / ref).is_file():
            found = home / "snapshots" / (home / ref).read_text(encoding="utf-8", errors="replace").strip()
            if found.is_dir():
                return found
    there = sorted((home / "snapshots").glob("*/"), key=lambda p: p.stat().st_mtime)
    if not there:
        raise UserError(
            f"{name}: not in the cache of the Hugging Face hub ({cache}); download it first: {_command(repository)}"
        )
    return there[-1]


def _cache() -> Path:
    """As huggingface_hub finds it; read when it is asked for, and without the seconds that an import takes."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
