"""The safetensors format, read and written tensor by tensor in plain numpy.

The public library has no bfloat16 in numpy and writes whole files at once; a checkpoint of billions of weights must
pass through one tensor at a time. Format: u64 header length, JSON header (name -> dtype, shape, data offsets),
data. Tensors are handed around as raw bits: bfloat16 as uint16.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BITS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_SIZES = {**{k: v.itemsize for k, v in _BITS.items()}, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
          "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}  # fmt: skip
_MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """Where one tensor is: file, dtype name of the format (``BF16``), shape, byte range in the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def check_dtype(self) -> None:
        """Raises:
        UserError: the tensor is of a dtype that no weight has.
        """
        if self.dtype not in _BITS:
            raise UserError(f"{self.path}: tensor {self.name} has dtype {self.dtype}; supported: {', '.join(_BITS)}")

    def read(self, part: int = 0, parts: int = 1) -> Array:
        """The tensor as float32 (float32, float16, bfloat16 are widened exactly).

        Args:
            part, parts: read only the part-th of ``parts`` equal runs of rows.

        Raises:
            UserError: of a dtype that no weight has, or the file ends too early.
        """
        self.check_dtype()
        bits = _BITS[self.dtype]
        with open(self.path, "rb") as f:
            count = prod(self.shape) // parts
            f.seek(self.start + part * count * bits.itemsize)
            raw = np.fromfile(f, bits, count)
        if raw.size != count:
            raise UserError(f"{self.path}: ends inside tensor {self.name}; the file is truncated, fetch it again")
        shape = self.shape if parts == 1 else (self.shape[0] // parts, *self.shape[1:])
        return to_float32(raw, self.dtype).reshape(shape)

    def rows(self, which: Array) -> Array:
        """Some rows of a matrix as float32, without reading the others.

        Args:
            which: [n] row numbers.

        Raises:
            UserError: as ``read``.
        """
        self.check_dtype()
        bits = _BITS[self.dtype]
        if self.path.stat().st_size < self.start + prod(self.shape) * bits.itemsize:
            raise UserError(f"{self.path}: ends inside tensor {self.name}; the file is truncated, fetch it again")
        table = np.memmap(self.path, bits, "r", self.start, self.shape)
        return to_float32(np.asarray(table[which]), self.dtype)


def to_float32(raw: Array, dtype: str) -> Array:
    """Bits of ``dtype`` (``F32``, ``F16``, ``BF16``) as float32; exact."""
    if dtype == "BF16":
        out = raw.astype(np.uint32)
        out <<= 16
        return out.view(np.float32)
    return raw.astype(np.float32, copy=False)


def from_float32(values: Array, dtype: str) -> Array:
    """float32 rounded to nearest even as bits of ``dtype``; exact where ``to_float32`` made the values.

    NaN stays NaN; values beyond float16's range become infinite there.
    """
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    # Adding 0x7fff, plus the lowest kept bit, carries into it exactly when round-half-to-even says so.
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    out = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        out[nan] = 0x7FC0
    return out


def entries(folder: Path) -> dict[str, Entry]:
    """All tensors of a checkpoint folder by name: of the sharded index, or of the single file.

    Raises:
        UserError: no safetensors there, a file is missing or damaged, or the index disagrees with the files.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / SINGLE).is_file():
        others = sorted(p.name for p in folder.glob("*.safetensors") if p.name != SINGLE)
        if others:  # vLLM reads whatever is there
            raise UserError(
                f"{folder}: beside {SINGLE} there is {_some(others)}, and no {INDEX} says which files "
                "count; move it out of the folder"
            )
        return _header(folder / SINGLE)
    if any(p for suffix in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{suffix}")):
        raise UserError(
            f"{folder}: holds pickled weights (.bin, .pt, .pth or .ckpt), which can run code when read and "
            "are refused; convert them to safetensors first"
        )
    raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} there")


def write(path: Path, layout: Iterable[tuple[str, str, tuple[int, ...]]], values: Callable[[str], Array]) -> None:
    """Writes one file, asking for each tensor when its turn comes.

    Args:
        path: the file.
        layout: (name, dtype, shape) in the order of the data.
        values: gives the float32 values of a name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, layout = 0, list(layout)
    for name, dtype, shape in layout:
        size = prod(shape) * _BITS[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in layout:
            array = values(name)
            assert array.shape == shape, (name, array.shape, shape)
            f.write(from_float32(array, dtype).data)  # ``tofile`` would hide why a write fails


def _indexed(folder: Path) -> dict[str, Entry]:
    index = folder / INDEX
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = sorted(set(weight_map.values()))
        names = set(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index}: not a safetensors index (no readable weight_map)") from None
    found: dict[str, Entry] = {}
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{index}: entry {file!r} leads out of the folder; refused")
        if not (folder / file).is_file():
            raise UserError(f"{folder}: {file} is missing; the index names it")
        for name, entry in _header(folder / file).items():
            if name in found:
                raise UserError(f"{folder}: tensor {name} is in {found[name].path.name} and in {file}")
            found[name] = entry
    lost = sorted(names - set(found))
    if lost:
        raise UserError(f"{index}: names {_some(lost)} but the files do not hold it")
    return found


def _header(path: Path) -> dict[str, Entry]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, info in header.items():
            shape, (start, stop) = tuple(info["shape"]), info["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
                raise ValueError(f"tensor {name} has a bad shape or offset")
            if stop - start != prod(shape) * _SIZES[info["dtype"]]:
                raise ValueError(f"the size of tensor {name} does not fit its shape")
            if stop > size - 8 - length:
                raise ValueError(f"it ends inside tensor {name}")
            found[name] = Entry(path, name, info["dtype"], shape, 8 + length + start, 8 + length + stop)
        _check_cover(found, 8 + length, size)
        return found
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as e:
        raise UserError(f"{path}: damaged safetensors file ({e}); fetch it again") from None


def _check_cover(found: dict[str, Entry], begin: int, end: int) -> None:
    """The public library, which vLLM reads with, refuses files whose tensors overlap or leave bytes between them."""
    at = begin
    for entry in sorted(found.values(), key=lambda e: (e.start, e.stop)):
        if entry.start != at:
            raise ValueError(f"tensor {entry.name} does not begin where the one before it ends")
        at = entry.stop
    if at != end:
        raise ValueError(f"{end - at} bytes follow its last tensor")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
