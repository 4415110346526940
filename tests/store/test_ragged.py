"""List columns in memory and in a flat file."""

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.store import ragged
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.ragged import Ragged, concat_ranges


def write(folder, lists, shard=3):
    dataset = Dataset(folder, "rollouts", "f")
    shards = -(-len(lists) // shard)
    for s in range(shards):
        part = lists[s * shard : (s + 1) * shard]
        n = len(part)
        dataset.write_table(s, pa.table({
            "sample_id": np.arange(n), "prompt_index": np.arange(n), "path": np.zeros(n, np.int8),
            "response_ids": pa.array([x or [] for x in part], pa.list_(pa.int32())),
            "logprobs": pa.array([None if x is None else [-float(i) for i in x] for x in part],
                                 pa.list_(pa.float32())),
            "label_ids": pa.nulls(n, pa.list_(pa.int32())), "finish_reason": ["stop"] * n}))  # fmt: skip
    dataset.finish(shards)
    return Dataset.open(folder, "rollouts")


LISTS = [[1, 2, 3], [], None, [4], [5, 6], [7], [8, 9, 10, 11]]


@pytest.fixture(params=["memory", "file"])
def where(request, monkeypatch):
    if request.param == "file":
        monkeypatch.setattr(ragged, "IN_MEMORY_BYTES", 0)
    return request.param


def test_lists_by_row(tmp_path, where):
    dataset = write(tmp_path / "d", LISTS)
    for _ in range(2):  # made, then found
        found = Ragged.read(dataset, "logprobs")
        assert [found[i].tolist() for i in range(len(LISTS))] == [[-float(v) for v in x or []] for x in LISTS]
        rows = np.array([6, 0, 1, 4])
        assert found.lengths_of(rows).tolist() == [4, 3, 0, 2]
        taken = found.take(rows, np.array([2, 3, 0, 1]))
        assert taken.tolist() == [-8, -9, -1, -2, -3, -5] and taken.dtype == np.float32
        assert len(Ragged.read(dataset, "label_ids").values) == 0
    assert (tmp_path / "d" / "logprobs.flat").exists() == (where == "file")


def test_a_flat_file_that_is_damaged_or_of_other_shards_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(ragged, "IN_MEMORY_BYTES", 0)
    dataset = write(tmp_path / "d", LISTS)
    Ragged.read(dataset, "response_ids")
    path = tmp_path / "d" / "response_ids.flat"
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(bytes(data))
    assert Ragged.read(dataset, "response_ids")[0].tolist() == [1, 2, 3]
    again = write(tmp_path / "d", [[9, 9], *LISTS[1:]])
    assert Ragged.read(again, "response_ids")[0].tolist() == [9, 9]
    path.unlink()
    assert Ragged.read(again, "response_ids")[0].tolist() == [9, 9]


def test_values_that_files_hold_for_nothing_are_mapped(tmp_path, monkeypatch):
    dataset = write(tmp_path / "d", [[7] * 50_000] * 8)
    size = sum(r["bytes"] for r in dataset.manifest["shards"])
    assert size < 800_000  # of 1.6 million
    monkeypatch.setattr(ragged, "IN_MEMORY_BYTES", 800_000)
    found = Ragged.read(dataset, "response_ids")
    assert isinstance(found.values, np.memmap) and found[7].tolist() == [7] * 50_000
    assert not isinstance(Ragged.read(dataset, "label_ids").values, np.memmap)


def test_concat_ranges():
    assert concat_ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
    assert len(concat_ranges(np.zeros(0), np.zeros(0))) == 0
