"""The GGUF file of one wheel, read: metadata, and tensors of the three types that it holds. Not a general reader.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from npd_ascend.errors import UserError

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_BLOCK = 32
_ALIGNMENT = 32
_Q4_1 = np.dtype([("scale", "<f2"), ("least", "<f2"), ("packed", "u1", _BLOCK // 2)])
_Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", _BLOCK)])


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    """scale · q + least; the low halves of the bytes are the first 16 values of a block."""
    packed = blocks["packed"]
    quants = np.concatenate((packed & 15, packed >> 4), -1).astype(np.float32)
    return quants * blocks["scale"].astype(np.float32)[:, None] + blocks["least"].astype(np.float32)[:, None]


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]


_TYPES: dict[int, tuple[np.dtype[Any], int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (np.dtype("<f4"), 1, lambda values: values),
    3: (_Q4_1, _BLOCK, _q4_1),
    8: (_Q8_0, _BLOCK, _q8_0),
}
"""GGML type: a block's layout, its values, and how they become float32."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is and what it is like; ``shape`` as numpy has it, slowest axis first."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: int
    start: int

    def read(self) -> np.ndarray:
        """Its values, float32.

        Raises:
            UserError: of a type that this reader does not know, or the file ends too early.
        """
        if self.kind not in _TYPES:
            raise UserError(f"{self.path}: tensor {self.name} has GGML type {self.kind}; known are F32, Q4_1 and Q8_0")
        layout, values, widen = _TYPES[self.kind]
        count = prod(self.shape) // values
        with open(self.path, "rb") as f:
            f.seek(self.start)
            blocks = np.fromfile(f, layout, count)
        if len(blocks) != count:
            raise UserError(f"{self.path}: ends inside tensor {self.name}")
        return widen(blocks).reshape(self.shape)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Metadata by key, and tensors by name.

    Raises:
        UserError: the file is no GGUF of version 3, or damaged.
    """
    try:
        with open(path, "rb") as f:
            magic, version, tensors, keys = struct.unpack("<4sIQQ", f.read(24))
            if magic != b"GGUF" or version != 3:
                raise UserError(f"{path}: no GGUF file of version 3")
            metadata = {}
            for _ in range(keys):
                key = _string(f)
                metadata[key] = _value(f, *_unpack(f, "<I"))
            infos = [_info(f) for _ in range(tensors)]
            alignment = metadata.get("general.alignment", _ALIGNMENT)
            data = -(-f.tell() // alignment) * alignment
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as e:
        raise UserError(f"{path}: damaged GGUF file ({e})") from None
    return metadata, {name: GgufTensor(path, name, shape, kind, data + at) for name, shape, kind, at in infos}


def _info(f: IO[bytes]) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(f)
    (axes,) = _unpack(f, "<I")
    shape = _unpack(f, f"<{axes}Q")[::-1]
    kind, at = _unpack(f, "<IQ")
    return name, shape, kind, at


def _value(f: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(f)
    if kind == _ARRAY:
        inner, count = _unpack(f, "<IQ")
        if inner in (_STRING, _ARRAY):
            return [_value(f, inner) for _ in range(count)]
        dtype = np.dtype(_SCALARS[inner])
        return np.frombuffer(f.read(count * dtype.itemsize), dtype, count).tolist()
    dtype = np.dtype(_SCALARS[kind])
    return np.frombuffer(f.read(dtype.itemsize), dtype, 1)[0].item()


def _string(f: IO[bytes]) -> str:
    (length,) = _unpack(f, "<Q")
    data = f.read(length)
    if len(data) != length:
        raise ValueError("it ends inside a text")
    return data.decode()


def _unpack(f: IO[bytes], form: str) -> tuple[Any, ...]:
    return struct.unpack(form, f.read(struct.calcsize(form)))
