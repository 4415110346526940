"""What makes two things the same: sample ids, seeds, and fingerprints of everything an output depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npd_ascend.errors import CorruptSnapshot, UserError
from npd_ascend.store.atomic import read_sealed, write_sealed

SCHEMA_VERSION = 5
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def digest(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(kind: str, inputs: Mapping[str, Any]) -> str:
    """Identity of a dataset: its kind, the schema version and all its content depends on."""
    return digest({"kind": kind, "schema": SCHEMA_VERSION, "inputs": dict(inputs)})


def prompt_id(tokens: list[int] | Any, index: int) -> int:
    """Stable 63-bit id of a prompt: its token ids and its place (equal prompts stay distinct samples)."""
    h = hashlib.sha256(f"{index}|".encode() + ",".join(map(str, tokens)).encode())
    return int.from_bytes(h.digest()[:8], "little") >> 1


def sample_id(prompt: int, path: int, generation: int) -> int:
    """Stable 63-bit id of one answer: hash of prompt id, path number and generation."""
    h = hashlib.sha256(f"{prompt}|{path}|{generation}".encode())
    return int.from_bytes(h.digest()[:8], "little") >> 1


def sample_seed(run_seed: int, sample: int) -> int:
    """Seed (32 bits) of a sampled path; independent of the order in which samples are generated."""
    h = hashlib.sha256(f"{run_seed}|{sample}".encode())
    return int.from_bytes(h.digest()[:4], "little")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def model_fingerprint(folder: Path, cache: Path | None = None) -> str:
    """Identity of a checkpoint folder: the contents of its config, weights and tokenizer files.

    Args:
        folder: Hugging Face checkpoint folder.
        cache: JSON file that remembers hashes by path, size and modification time, so that a 14 GB checkpoint
            is read once and not at every start.

    Raises:
        UserError: the folder or its config.json is missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there; expected a Hugging Face checkpoint folder")
    known: dict[str, str] = (read_sealed(cache) if cache else None) or {}
    files = sorted({p for pattern in _MODEL_FILES for p in folder.glob(pattern) if p.is_file()})
    hashes, fresh = {}, dict(known)
    for path in files:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        try:
            hashes[path.name] = fresh[key] = known.get(key) or file_sha256(path)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    if cache and fresh != known:
        write_sealed(cache, fresh)
    return digest(hashes)


def file_seals(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder by name."""
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}


def seals_hold(folder: Path, seals: Any) -> bool:
    """Whether the files of a folder are still those that ``file_seals`` saw; more files do not matter."""
    if not isinstance(seals, dict) or not seals:
        return False
    try:
        return all(file_sha256(inside(folder, name)) == seal for name, seal in seals.items())
    except OSError:
        return False


def check_seals(folder: Path) -> None:
    """Looks whether a checkpoint that a run wrote (a snapshot, the export) is what it wrote, before it is loaded.

    The mark beside such a folder, ``<folder>.json``, holds the hashes of its files; other folders have none and pass.

    Raises:
        CorruptSnapshot: a file is missing or differs.
    """
    seals = (read_sealed(folder.with_name(folder.name + ".json")) or {}).get("files")
    for name, seal in (seals if isinstance(seals, dict) else {}).items():
        try:
            found = file_sha256(inside(folder, name))
        except OSError as e:
            raise CorruptSnapshot(str(folder), f"{name} cannot be read ({e.strerror})") from None
        if found != seal:
            raise CorruptSnapshot(str(folder), f"{name} is damaged (its checksum differs)")


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, refusing names that lead out of the folder (manifests are input too)."""
    path = folder / name
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise UserError(f"{folder}: entry {name!r} leads out of the folder; refused")
    return path


def weights_stamp(model: Path) -> tuple[tuple[str, int, int], ...] | None:
    """What tells one set of weights from another without reading them: resolved paths, sizes, times."""
    files = sorted(model.glob("*.safetensors"))
    return tuple((str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns) for f in files) or None
