"""Weights between a Hugging Face folder and the network, one tensor at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.models import hf_files, tensorfile
from npd_ascend.models.mapping import Rule, rules
from npd_ascend.models.spec import ModelSpec
from npd_ascend.models.tensorfile import Entry
from npd_ascend.store.atomic import atomic_folder, write_json
from npd_ascend.store.identity import check_seals

if TYPE_CHECKING:
    from npd_ascend.models.network import CausalLM

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_BUFFER = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "*.md", "LICENSE*")


def load_hf(net: CausalLM, folder: Path, also: Callable[[str, Array], None] | None = None) -> None:
    """Fills the network from a checkpoint folder; of a model that is cut, with this rank's share.

    Holds the network and the tensors of one parameter. Tolerated extras: an ``lm_head.weight`` equal to the embedding
    where both are tied, and rotary frequency buffers.

    Args:
        net: the network.
        folder: Hugging Face folder.
        also: is given each parameter's name and float32 value, before it is rounded to the network's type.

    Raises:
        UserError: tensors missing, unknown, of the wrong shape, NaN or infinite.
        CorruptSnapshot: a run wrote the folder, and it has changed since.
    """
    from mindspore import Tensor

    check_seals(Path(folder))
    found = checked(net.spec, Path(folder))
    parameters = {p.name: p for p in net.get_parameters()}
    tp_shards = net.tp_shards()
    assert set(parameters) == set(tp_shards.rules), sorted(set(parameters) ^ set(tp_shards.rules))
    for param, rule in tp_shards.rules.items():
        cut = rule.cut if tp_shards.size > 1 else None
        tensors = [finite(found[name], cut, tp_shards.rank, tp_shards.size) for name in rule.hf]
        merged = np.ascontiguousarray(tp_shards.merge(param, tensors))
        parameter = parameters[param]
        assert merged.shape == tuple(parameter.shape), (param, merged.shape, parameter.shape)
        parameter.set_data(Tensor(merged, dtype=parameter.dtype))
        if also is not None:
            also(param, merged)


def save_hf(
    net: CausalLM,
    out: Path,
    like: Path,
    dtype: str | None = None,
    *,
    leads: bool = True,
    declare: Callable[[Path], None] | None = None,
) -> None:
    """Writes the network as a checkpoint folder with the files, shards and tensor order of ``like``.

    Config and tokenizer files are copied, in the form that transformers 4 and 5 both read. The folder appears whole or
    not at all. Of a model that is cut, all ranks must call; the folder is that of the whole model.

    Args:
        net: the network.
        out: folder to make or replace.
        like: checkpoint of the same architecture.
        dtype: a key of ``DTYPES``; None: each tensor in the dtype that it has in ``like``.
        leads: whether this process is the one that writes.
        declare: changes the copied files of the folder before it appears.

    Raises:
        UserError: ``like`` is not such a checkpoint, or a weight is NaN or infinite.
    """
    out, like = Path(out), Path(like)
    found = checked(net.spec, like)
    source = _Splitter(net)

    def values(name: str) -> Array:
        return source(name) if name in source else found[name].read()

    if leads:
        rewrite(out, like, found, dtype, values, declare)
        return
    for entries in _files(found).values():
        for entry in entries:
            values(entry.name)


def rewrite(
    out: Path,
    like: Path,
    found: dict[str, Entry],
    dtype: str | None,
    values: Callable[[str], Array],
    declare: Callable[[Path], None] | None = None,
) -> None:
    """Writes a folder with the files, shards and tensor order of ``like`` and other values or another dtype.

    Args:
        out: folder to make or replace; it appears whole or not at all.
        like: checkpoint folder whose config and tokenizer files are copied.
        found: its tensors.
        dtype: a key of ``DTYPES``; None: each tensor keeps its own.
        values: gives the float32 values of a name.
        declare: changes the copied files before the folder appears.
    """
    with atomic_folder(out) as folder:
        for pattern in COMPANIONS:
            for path in like.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        for file, here in _files(found).items():
            layout = [(e.name, DTYPES[dtype] if dtype else e.dtype, e.shape) for e in here]
            tensorfile.write(folder / file.name, layout, values)
        if dtype:
            _declare_dtype(folder, dtype)
        if declare:
            declare(folder)
        hf_files.make_readable(folder)


def _files(found: dict[str, Entry]) -> dict[Path, list[Entry]]:
    """Tensors by file, in the order in which they are written."""
    files = sorted({e.path for e in found.values()})
    return {f: sorted((e for e in found.values() if e.path == f), key=lambda e: e.start) for f in files}


def _declare_dtype(folder: Path, dtype: str) -> None:
    """Makes config.json, and the index if there is one, say that the folder's tensors are of ``dtype``."""
    config = json.loads((folder / "config.json").read_text())
    for key in {"dtype", "torch_dtype"} & set(config) or {"torch_dtype"}:
        config[key] = dtype
    write_json(folder / "config.json", config)
    index = folder / tensorfile.INDEX
    if index.is_file():
        value = json.loads(index.read_text())
        size = sum(e.stop - e.start for e in tensorfile.entries(folder).values())
        write_json(index, {**value, "metadata": {**value.get("metadata", {}), "total_size": size}})


class _Splitter:
    """Checkpoint tensors by name, taken out of the network; the parts of one parameter are split once."""

    def __init__(self, net: CausalLM):
        self._parameters = {p.name: p for p in net.get_parameters()}
        self._tp_shards = net.tp_shards()
        self._rule: dict[str, Rule] = {name: rule for rule in self._tp_shards.rules.values() for name in rule.hf}
        if net.spec.tie_embeddings:
            self._rule[_HEAD] = self._rule[_EMBEDDING]
        self._parts: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._rule

    def __call__(self, name: str) -> Array:
        if name not in self._parts:
            rule = self._rule[name]
            value = self._parameters[rule.param].float().asnumpy()
            # Waiting parts of other parameters are few: shards keep a layer's tensors together.
            names = (name,) if len(rule.hf) == 1 else rule.hf
            self._parts.update(zip(names, self._tp_shards.tensors(rule.param, value), strict=True))
        value = self._parts.pop(name)
        if not np.isfinite(value).all():
            raise UserError(f"weight {name} is NaN or infinite: training has diverged; lower train.lr")
        return value


def check_checkpoint(folder: Path) -> ModelSpec:
    """Config, and headers and sizes of the weight files. Values are not read: NaN and infinite ones are found when the
    weights are loaded.

    Raises:
        UserError: unsupported; a file is missing, pickled, cut off or damaged; tensors are missing, too many, or of
            other shapes or types.
    """
    spec = ModelSpec.from_folder(folder)
    checked(spec, folder)
    return spec


def checked(spec: ModelSpec, folder: Path) -> dict[str, Entry]:
    """The folder's tensors, once they are known to be exactly those of the architecture.

    Raises:
        UserError: they are not, or a file is not usable.
    """
    found = tensorfile.entries(folder)
    expected = {name: shape for rule in rules(spec) for name, shape in zip(rule.hf, rule.shapes, strict=True)}
    missing = sorted(set(expected) - set(found))
    extra = sorted(n for n in set(found) - set(expected) if not _BUFFER.fullmatch(n))
    if spec.tie_embeddings and _HEAD in extra:
        extra.remove(_HEAD)
        if not _equal(found[_HEAD], found.get(_EMBEDDING)):
            raise UserError(
                f"{folder}: config.json ties the embeddings, but {_HEAD} differs from {_EMBEDDING}; "
                f"set tie_word_embeddings: false there"
            )
    if missing or extra:
        parts = [f"missing: {_some(missing)}"] * bool(missing) + [f"not expected: {_some(extra)}"] * bool(extra)
        raise UserError(f"{folder}: tensors do not fit its config.json; " + "; ".join(parts))
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise UserError(
                f"{folder}: tensor {name} has shape {list(found[name].shape)}, config.json asks for {list(shape)}"
            )
        found[name].check_dtype()
    return found


def _equal(head: Entry, embedding: Entry | None) -> bool:
    return embedding is None or (head.shape == embedding.shape and bool(np.array_equal(head.read(), embedding.read())))


def finite(entry: Entry, cut: int | None = None, part: int = 0, parts: int = 1) -> Array:
    """A tensor, or the part-th of ``parts`` equal parts along axis ``cut``.

    Raises:
        UserError: it holds NaN or infinite values.
    """
    value = entry.read(part, parts) if cut == 0 else entry.read()
    if cut:
        value = np.split(value, parts, cut)[part]
    # One pass without a temporary of the tensor's size: a sum is finite only if all is (or overflows, checked then).
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(value.sum(dtype=np.float64))
    if suspicious and not np.isfinite(value).all():
        raise UserError(f"{entry.path}: tensor {entry.name} holds NaN or infinite values; the checkpoint is damaged")
    return value


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
