"""Top-k codec and shards: exact ids, bounded error of values, damage found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.errors import CorruptShard
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_codec import MAX_NATS, TopK, TopKCodec
from npd_ascend.store.topk_shard import TopKReader, write_topk


def annotation(rng, T, k, V, scale=4.0):
    """Naive annotation of random logits, only for small V."""
    logits = rng.normal(size=(T, V)) * scale
    logz = np.log(np.exp(logits).sum(-1))
    lp = logits - logz[:, None]
    ids = np.argsort(-lp, -1)[:, :k]
    entropy = -(np.exp(lp) * lp).sum(-1)
    return TopK(
        ids.astype(np.int32),
        np.take_along_axis(lp, ids, 1).astype(np.float32),
        logz.astype(np.float32),
        lp[np.arange(T), rng.integers(0, V, T)].astype(np.float32),
        entropy.astype(np.float32),
    )


def bound(x, bits):
    """Worst rounding error of a companded value x: half a code step on either side, from the docstring."""
    q = (1 << bits) - 1
    return np.sqrt(MAX_NATS * x) / q + MAX_NATS / (4 * q * q) + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(0, 20), k=st.integers(1, 12), V=st.integers(12, 400), bits=st.integers(6, 16), seed=st.integers(0, 99)
)
def test_round_trip(T, k, V, bits, seed):
    topk = annotation(np.random.default_rng(seed), T, k, V)
    codec = TopKCodec(k, V, bits)
    records = codec.encode(topk)
    assert records.shape == (T, codec.record_bytes) and records.dtype == np.uint8
    back = codec.decode(records)
    assert (back.ids == topk.ids).all()
    assert (np.abs(back.logprobs - topk.logprobs) <= bound(-topk.logprobs, bits)).all()
    assert (np.diff(back.logprobs, axis=1) <= 0).all()
    assert (np.abs(back.sampled - topk.sampled) <= bound(-topk.sampled, 16)).all()
    assert np.allclose(back.logz, topk.logz, rtol=1e-3, atol=1e-6)
    assert np.allclose(back.entropy, topk.entropy, atol=np.log(V) / 4095)


def test_true_width_of_the_real_vocabulary():
    codec = TopKCodec(10, 153376, 12)
    assert codec.id_bits == 18 and codec.record_bytes == 43
    ids = np.array([[153375, 0, 131072, 65535, 65536, 1, 2, 3, 4, 153374]], np.int32)
    t = TopK(
        ids,
        -np.arange(10, dtype=np.float32)[None],
        np.ones(1, np.float32),
        -np.ones(1, np.float32),
        np.ones(1, np.float32),
    )
    assert (codec.decode(codec.encode(t)).ids == ids).all()


def test_impossible_tokens_stay_finite_and_nan_is_refused():
    codec = TopKCodec(2, 8, 12)
    t = TopK(
        np.array([[1, 2]], np.int32),
        np.array([[0.0, -np.inf]], np.float32),
        np.zeros(1, np.float32),
        np.array([-np.inf], np.float32),
        np.zeros(1, np.float32),
    )
    back = codec.decode(codec.encode(t))
    assert back.logprobs.tolist() == [[0.0, -MAX_NATS]] and back.sampled.tolist() == [-MAX_NATS]
    t.logz[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(t)
    t.logz[0], t.ids[0, 0] = 0, 8
    with pytest.raises(ValueError, match="outside"):
        codec.encode(t)


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(0)
    codec = TopKCodec(5, 300, 16)
    shards = [[annotation(rng, T, 5, 300) for T in lengths] for lengths in ((3, 0, 7), (1, 12))]
    dataset = Dataset(tmp_path / "topk", "topk", "f")
    for i, samples in enumerate(shards):
        write_topk(dataset, i, codec, samples)
    dataset.finish(2)
    return dataset, [s for shard in shards for s in shard]


def test_random_access(stored):
    dataset, samples = stored
    reader = TopKReader(Dataset.open(dataset.folder, "topk"))
    assert len(reader) == 5 and reader.k == 5 and reader.vocab_size == 300
    for ordinal in (4, 0, 2, 1, 3):
        back = reader.read(ordinal)
        assert len(back) == len(samples[ordinal])
        assert (back.ids == samples[ordinal].ids).all()
        assert np.allclose(back.logprobs, samples[ordinal].logprobs, atol=2e-3)


def test_every_flipped_byte_is_found(stored):
    """A flip anywhere in the file is either refused at opening or found when its sample is read."""
    dataset, _ = stored
    path = dataset.path(1)
    clean = path.read_bytes()
    for at in range(0, len(clean), 3):
        data = bytearray(clean)
        data[at] ^= 0x10
        path.write_bytes(bytes(data))
        with pytest.raises(CorruptShard) as e:
            reader = TopKReader(Dataset.open(dataset.folder, "topk"))
            reader.read(3), reader.read(4)
        assert e.value.index == 1


def test_truncated_shard_is_found(stored):
    dataset, _ = stored
    data = dataset.path(0).read_bytes()
    dataset.path(0).write_bytes(data[:-1])
    with pytest.raises(CorruptShard):
        TopKReader(Dataset.open(dataset.folder, "topk"))


def test_many_at_once_equal_one_by_one(stored):
    dataset, _ = stored
    reader = TopKReader(Dataset.open(dataset.folder, "topk"))
    order = [4, 1, 0, 4]
    for many, ordinal in zip(reader.read_many(order), order, strict=True):
        one = reader.read(ordinal)
        for name in ("ids", "logprobs", "logz", "sampled", "entropy"):
            assert (getattr(many, name) == getattr(one, name)).all()
    assert reader.read_many([]) == []
