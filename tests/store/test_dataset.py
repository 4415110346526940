"""Shards and manifests: commit, resume, mismatch, damage."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.store.atomic import read_sealed, write_sealed
from npd_ascend.store.dataset import Dataset


def scores(n, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table({
        "sample_id": rng.integers(0, 1 << 62, n), "tokens": rng.integers(0, 9, n).astype(np.int32),
        "nll": rng.random(n), "entropy": rng.random(n).astype(np.float32)})  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    d = Dataset(tmp_path / "d", "scores", "fp")
    for i in range(3):
        d.write_table(i, scores(4 + i, i), note=i)
    d.finish(3, total=1.5)
    return d


def test_what_was_written_is_read(dataset):
    again = Dataset.open(dataset.folder, "scores")
    assert (again.shards, again.rows, again.extra, again.fingerprint) == (3, 15, {"total": 1.5}, "fp")
    assert again.read(1).equals(scores(5, 1).cast(again.read(1).schema))
    assert again.read_all(["tokens"]).column_names == ["tokens"]
    assert again.manifest["shards"][2]["meta"] == {"note": 2}


def test_no_manifest_no_dataset(tmp_path):
    d = Dataset(tmp_path / "d", "scores", "fp")
    d.write_table(0, scores(2))
    assert not d.complete and d.missing(2) == [1]
    with pytest.raises(UserError, match="no finished scores"):
        Dataset.open(d.folder, "scores")
    with pytest.raises(UserError, match="shard 1 of 2 is missing"):
        d.finish(2)


def test_shards_of_other_inputs_do_not_count(dataset):
    other = Dataset(dataset.folder, "scores", "changed")
    assert not other.complete and other.missing(3) == [0, 1, 2]


def test_wrong_kind_and_version_are_refused(dataset):
    with pytest.raises(UserError, match="holds scores, expected packs"):
        Dataset.open(dataset.folder, "packs")
    path = dataset.folder / "manifest.json"
    write_sealed(path, {**read_sealed(path), "schema": 99})
    with pytest.raises(UserError, match="format version 99"):
        Dataset.open(dataset.folder, "scores")


@settings(max_examples=30)
@given(where=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_and_the_shard_can_be_made_again(tmp_path_factory, where, bit):
    d = Dataset(tmp_path_factory.mktemp("d"), "scores", "fp")
    d.write_table(0, scores(50))
    d.finish(1)
    data = bytearray(d.path(0).read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    d.path(0).write_bytes(bytes(data))
    with pytest.raises(CorruptShard) as e:
        d.read(0)
    assert e.value.index == 0 and e.value.dataset == str(d.folder)
    d.discard(0)
    assert not d.complete and d.missing(1) == [0]
    d.write_table(0, scores(50))
    d.finish(1)
    assert d.read(0).num_rows == 50


def test_a_truncated_shard_is_missing(dataset):
    data = dataset.path(2).read_bytes()
    dataset.path(2).write_bytes(data[:-3])
    assert dataset.missing(3) == [2]
    with pytest.raises(CorruptShard):
        dataset.read(2)


def test_a_failed_write_leaves_what_was_there(dataset):
    before = dataset.path(0).read_bytes()

    def fill(f):
        f.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        dataset.write(0, 1, fill)
    assert dataset.path(0).read_bytes() == before
    assert not list(dataset.folder.glob(".tmp-*"))


def test_missing_column_is_a_fault(tmp_path):
    with pytest.raises(KeyError):
        Dataset(tmp_path, "scores", "fp").write_table(0, scores(3).drop(["entropy"]))


def test_empty_dataset_reads_as_empty_table(tmp_path):
    d = Dataset(tmp_path / "d", "scores", "fp")
    d.finish(0)
    assert d.read_all().num_rows == 0 and d.read_all(["tokens"]).column_names == ["tokens"]


@settings(max_examples=60)
@given(where=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_columns_are_read_right_or_not_at_all(tmp_path_factory, where, bit):
    """Reading some columns checks their pages and the footer only: a flip elsewhere does not matter."""
    d = Dataset(tmp_path_factory.mktemp("d"), "scores", "fp")
    d.write_table(0, scores(200))
    d.finish(1)
    clean = d.read(0, ["tokens", "nll"])
    data = bytearray(d.path(0).read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    d.path(0).write_bytes(bytes(data))
    try:
        assert d.read(0, ["tokens", "nll"]).equals(clean)
    except CorruptShard:
        pass
    with pytest.raises(CorruptShard):
        d.read(0)


def test_token_counts_are_filled_in(tmp_path):
    d = Dataset(tmp_path / "d", "prompts", "fp")
    n = 3
    table = pa.table({
        "prompt_index": range(n), "prompt_id": range(n), "prompt_ids": [[1, 2], [], [3]],
        "reference_ids": pa.array([None] * n, pa.list_(pa.int32())),
        "label_ids": pa.array([None] * n, pa.list_(pa.int32())), "answer": ["a"] * n, "text": ["t"] * n})  # fmt: skip
    d.write_table(0, table)
    d.write_table(1, table.append_column("tokens", pa.array([None] * n, pa.int32())))
    for shard in (0, 1):
        assert d.read(shard, ["tokens"])["tokens"].to_pylist() == [2, 0, 1]


def test_a_finished_dataset_can_be_written_again(dataset):
    for d in (dataset, Dataset.open(dataset.folder, "scores")):
        for seed in (7, 8):
            d.write_table(1, scores(6, seed))
            d.finish(3)
            again = Dataset.open(d.folder, "scores")
            assert again.rows == 16 and again.read(1).equals(scores(6, seed).cast(again.read(1).schema))


def prompts(masked=None):
    table = {
        "prompt_index": [0, 1],
        "prompt_id": [5, 6],
        "prompt_ids": [[1], [2, 3]],
        "reference_ids": [[7], [8, 9]],
        "label_ids": [None, None],
        "answer": ["a", None],
        "text": ["b", "c"],
    }
    ids = pa.list_(pa.int32())
    out = pa.table({k: pa.array(v, ids if k.endswith("_ids") else None) for k, v in table.items()})
    return out if masked is None else out.append_column("reference_masked", pa.array(masked, ids))


def test_a_column_without_values_leaves_no_trace(tmp_path):
    """Byte for byte: a dataset without masks is the one that was written before there were any."""
    plain, empty, full = (Dataset(tmp_path / n, "prompts", "fp") for n in ("plain", "empty", "full"))
    plain.write_table(0, prompts())
    empty.write_table(0, prompts([None, None]))
    full.write_table(0, prompts([None, [0, 1]]))
    assert plain.path(0).read_bytes() == empty.path(0).read_bytes() != full.path(0).read_bytes()
    assert full.read(0).column_names == [*plain.read(0).column_names, "reference_masked"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_shards_with_and_without_an_optional_column_are_read_as_one(tmp_path, order):
    dataset = Dataset(tmp_path / "d", "prompts", "fp")
    for i, masked in enumerate([prompts(), prompts([[0, 1], None])][k] for k in order):
        dataset.write_table(i, masked)
    dataset.finish(2)
    wanted = [[None, None], [[0, 1], None]]
    for table in (dataset.read_all(), dataset.read_all(["text", "reference_masked"])):
        assert table["reference_masked"].to_pylist() == [v for k in order for v in wanted[k]]
        assert table["text"].to_pylist() == ["b", "c"] * 2
    assert [t["reference_masked"].to_pylist() for t in dataset.iter_tables(["reference_masked"])] == [
        wanted[k] for k in order
    ]
    assert "reference_masked" not in dataset.read_all(["text"]).column_names
