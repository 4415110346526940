"""Top-k codec and shards: exact ids, bounded error of values, damage found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.errors import CorruptShard
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_blocks import Decoder, encode, fit
from npd_ascend.store.topk_codec import MAX_NATS, TopK, TopKFormat
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


def close(back, topk, bits, V):
    """Whether a stored annotation is what was written, to the precision that is promised."""
    assert (back.ids == topk.ids).all()
    assert (np.abs(back.logprobs - topk.logprobs) <= bound(-topk.logprobs, bits)).all()
    assert (np.diff(back.logprobs, axis=1) <= 0).all()
    assert (np.abs(back.sampled - topk.sampled) <= bound(-topk.sampled, bits)).all()
    assert np.allclose(back.logz, topk.logz, rtol=1.5e-3, atol=1e-6)
    assert np.allclose(back.entropy, topk.entropy, atol=np.log(V) / 1023)
    return True


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    k=st.integers(1, 12),
    V=st.integers(12, 400),
    bits=st.integers(6, 16),
    seed=st.integers(0, 99),
)
def test_round_trip(lengths, k, V, bits, seed):
    topk = annotation(np.random.default_rng(seed), sum(lengths), k, V)
    form = TopKFormat(k, V, bits)
    symbols = form.symbols(topk)
    assert symbols.shape == (sum(lengths), 2 * k + 3)
    assert close(form.values(symbols), topk, bits, V)
    alphabets = fit(form, [symbols])
    data, size = encode(form, alphabets, symbols, np.array(lengths))
    assert data.dtype == np.uint8 and len(data) == size.sum()
    ends = np.cumsum(size)
    blocks = [data[e - n : e].tobytes() for e, n in zip(ends, size, strict=True)]
    decoder = Decoder(form, [fit(form, [symbols[:1]]), alphabets])
    second = np.ones(len(lengths), np.int64)
    assert close(decoder.decode(blocks, second, np.array(lengths)), topk, bits, V)
    order = np.random.default_rng(seed).permutation(len(lengths))
    back = decoder.decode([blocks[i] for i in order], second, np.array(lengths)[order], extras=False)
    parts = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    rows = np.concatenate([parts[i] for i in order])
    assert (back.ids == topk.ids[rows]).all() and not back.entropy.any()


def test_true_width_of_the_real_vocabulary():
    form = TopKFormat(10, 153376)
    assert form.id_bits == 18
    ids = np.array([[153375, 0, 131072, 65535, 65536, 1, 2, 3, 4, 153374]], np.int32)
    one = np.ones(1, np.float32)
    t = TopK(ids, -np.arange(10, dtype=np.float32)[None], one, -one, one)
    symbols = form.symbols(t)
    alphabets = fit(form, [symbols])
    data, _ = encode(form, alphabets, symbols, np.array([1]))
    assert (Decoder(form, [alphabets]).decode([data.tobytes()], np.zeros(1, int), np.array([1])).ids == ids).all()


@pytest.mark.parametrize("zipf,most", [(True, 27.5), (False, 33.5)])
def test_bytes_a_token_of_a_peaked_teacher(zipf, most):
    """20,000 tokens, V = 153,376, k = 10, tables included; the plan's figure is an upper bound."""
    rng, T, V = np.random.default_rng(0), 20_000, 153_376
    rest = np.where(rng.random(T) < 0.7, 10 ** rng.uniform(-6, -1, T), rng.uniform(0.1, 0.7, T))
    share = np.sort(rng.exponential(1, (T, 9)) * np.arange(1, 10) ** -1.5, 1)[:, ::-1]
    p = np.sort(np.concatenate([1 - rest[:, None], 0.9 * rest[:, None] * share / share.sum(1, keepdims=True)], 1), 1)
    weight = np.cumsum(1 / np.arange(1, V + 1) if zipf else np.ones(V))
    ids = rng.permutation(V)[np.searchsorted(weight, rng.random((T, 10)) * weight[-1])]
    logprobs = np.log(p[:, ::-1])
    form = TopKFormat(10, V)
    symbols = form.symbols(TopK(ids, logprobs, 22 + 3 * rng.standard_normal(T), logprobs[:, 0], rest))
    alphabets = fit(form, [symbols])
    data, _ = encode(form, alphabets, symbols, np.full(T // 50, 50))
    assert (len(data) + 4 * sum(len(a.table) for a in alphabets)) / T < most <= form.planned_bytes


def test_impossible_tokens_stay_finite_and_nan_is_refused():
    form = TopKFormat(2, 8, 12)
    t = TopK(
        np.array([[1, 2]], np.int32),
        np.array([[0.0, -np.inf]], np.float32),
        np.zeros(1, np.float32),
        np.array([-np.inf], np.float32),
        np.zeros(1, np.float32),
    )
    back = form.values(form.symbols(t))
    assert back.logprobs.tolist() == [[0.0, -MAX_NATS]] and back.sampled.tolist() == [-MAX_NATS]
    t.logz[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        form.symbols(t)
    t.logz[0], t.ids[0, 0] = 0, 8
    with pytest.raises(ValueError, match="outside"):
        form.symbols(t)
    t.ids[0, 0], t.logprobs[0] = 1, (-1, 0)
    with pytest.raises(ValueError, match="best first"):
        form.symbols(t)


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(0)
    form = TopKFormat(5, 300, 16)
    shards = [[annotation(rng, T, 5, 300) for T in lengths] for lengths in ((3, 0, 7), (1, 12))]
    dataset = Dataset(tmp_path / "topk", "topk", "f")
    for i, samples in enumerate(shards):
        write_topk(dataset, i, form, samples)
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
    dataset, samples = stored
    reader = TopKReader(Dataset.open(dataset.folder, "topk"))
    order = [4, 1, 0, 4]
    many, lengths = reader.read_many(order)
    assert lengths.tolist() == [len(samples[o]) for o in order]
    for name in ("ids", "logprobs", "logz", "sampled", "entropy"):
        one = np.concatenate([getattr(reader.read(o), name) for o in order])
        assert (getattr(many, name) == one).all()
    nothing, none = reader.read_many([])
    assert len(nothing) == 0 and len(none) == 0


def test_a_shard_of_the_format_before_is_refused(stored):
    dataset, _ = stored
    data = dataset.path(0).read_bytes()
    dataset.path(0).write_bytes(b"NPDTOPK1" + data[8:])
    with pytest.raises(CorruptShard, match="no top-k shard of this format"):
        TopKReader(Dataset.open(dataset.folder, "topk"))


def test_samples_of_many_groups_and_an_empty_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("npd_ascend.store.topk_shard._GROUP_TOKENS", 16)
    rng = np.random.default_rng(5)
    samples = [annotation(rng, T, 3, 60) for T in (0, 20, 0, 3, 40, 1, 0)]
    dataset = Dataset(tmp_path / "topk", "topk", "f")
    write_topk(dataset, 0, TopKFormat(3, 60), samples)
    write_topk(dataset, 1, TopKFormat(3, 60), [])
    dataset.finish(2)
    reader = TopKReader(Dataset.open(dataset.folder, "topk"))
    back, lengths = reader.read_many(np.arange(len(samples)))
    assert lengths.tolist() == [len(s) for s in samples]
    assert (back.ids == np.concatenate([s.ids for s in samples])).all()
