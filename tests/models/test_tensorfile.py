"""The safetensors reader and writer against the public library and exact arithmetic."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from npd_ascend.errors import UserError
from npd_ascend.models import tensorfile
from npd_ascend.models.tensorfile import entries, from_float32, to_float32, write


def nearest_bfloat16(x):
    """Round to nearest even by comparing the two neighbours in exact float64 arithmetic."""
    low = np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)
    candidates = [low, low + np.uint32(0x10000)]
    if float(x) == float(low.view(np.float32)):
        return int(low >> np.uint32(16))
    distance = [abs(float(np.uint32(c).view(np.float32)) - float(x)) for c in candidates]
    if distance[0] == distance[1]:
        return int(next(c for c in candidates if (int(c) >> 16) % 2 == 0) >> np.uint32(16))
    return int(candidates[int(distance[1] < distance[0])] >> np.uint32(16))


@settings(max_examples=300)
@given(
    st.one_of(st.integers(0x00800000, 0x7F000000), st.integers(0x0080, 0x7EFF).map(lambda b: (b << 16) | 0x8000)),
    st.booleans(),
)
def test_bfloat16_rounds_to_nearest_even(bits, negative):
    x = np.array([bits | negative << 31], np.uint32).view(np.float32)
    assert int(from_float32(x, "BF16")[0]) == nearest_bfloat16(x[0])


def test_bfloat16_specials_and_all_bit_patterns():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = to_float32(bits, "BF16")
    back = from_float32(wide, "BF16")
    number = ~np.isnan(wide)
    assert np.array_equal(back[number], bits[number])
    assert np.isnan(to_float32(back[~number], "BF16")).all()
    assert np.isinf(to_float32(from_float32(np.array([3.4e38], np.float32), "BF16"), "BF16"))[0]


def test_float16_survives():
    bits = np.arange(1 << 16, dtype=np.uint16)
    half = bits.view(np.float16)
    number = ~np.isnan(half)
    assert np.array_equal(from_float32(to_float32(half, "F16"), "F16")[number].view(np.uint16), bits[number])


def test_library_reads_ours_and_we_read_the_library(tmp_path):
    rng = np.random.default_rng(0)
    ours = {"a": rng.standard_normal((3, 5)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    write(tmp_path / "model.safetensors", [("a", "F32", (3, 5)), ("b", "F16", (7,))], ours.__getitem__)
    theirs = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(theirs["a"], ours["a"]) and np.array_equal(theirs["b"], ours["b"].astype(np.float16))
    with safe_open(tmp_path / "model.safetensors", "np") as f:
        assert f.metadata() == {"format": "pt"}
    save_file({"x": ours["a"], "scalar": np.array(2.5, np.float32)}, tmp_path / "model.safetensors")
    found = entries(tmp_path)
    assert np.array_equal(found["x"].read(), ours["a"]) and found["scalar"].read() == 2.5


def test_no_weights_and_pickled_weights(tmp_path):
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        entries(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled weights"):
        entries(tmp_path)


def header(value, body=b""):
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 4) + b"nope",
        header([]),
        header({"a": 1}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"12345678"),
        header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}, b"12345678"),
    ],
)
def test_damaged_files(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="damaged safetensors") as e:
        entries(tmp_path)
    assert "\n" not in str(e.value)


def test_integer_weights_are_refused_when_read(tmp_path):
    save_file({"w": np.ones(3, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="dtype I8"):
        entries(tmp_path)["w"].read()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "not a safetensors index"),
        ('{"weight_map": 3}', "not a safetensors index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "leads out"),
        ('{"weight_map": {"a": 5}}', "leads out"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing"),
        ('{"weight_map": {"a": "one.safetensors", "z": "one.safetensors"}}', "names z"),
    ],
)
def test_bad_indexes(tmp_path, index, words):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "one.safetensors")
    (tmp_path / tensorfile.INDEX).write_text(index)
    with pytest.raises(UserError, match=words):
        entries(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    for name in ("one", "two"):
        save_file({"a": np.ones(3, np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / tensorfile.INDEX).write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    with pytest.raises(UserError, match="is in one"):
        entries(tmp_path)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_some_rows(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    layout = [("first", "F32", (1,)), ("table", dtype, (7, 3))]  # the table begins anywhere in the file
    tensorfile.write(tmp_path / "model.safetensors", layout, lambda name: values if name == "table" else values[0, :1])
    entry = tensorfile.entries(tmp_path)["table"]
    which = np.array([5, 0, 5, 6])
    assert np.array_equal(entry.rows(which), entry.read()[which]) and entry.rows(which).dtype == np.float32
    with open(tmp_path / "model.safetensors", "r+b") as f:
        f.truncate(entry.stop - 1)
    with pytest.raises(UserError, match="truncated"):
        entry.rows(which)
