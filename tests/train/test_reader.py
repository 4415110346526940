"""Micro-batches against what the samples say, token by token."""

import numpy as np
import pytest

from npd_ascend.config.schema import TrainConfig
from npd_ascend.errors import UserError
from npd_ascend.objectives import registry
from npd_ascend.objectives.registry import TOKEN_WEIGHTS, Tokens, TokenWeight
from npd_ascend.rows.slices import Slice
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_shard import TopKReader
from npd_ascend.train import reader as reading
from npd_ascend.train.corpus import Corpus, EpochPlan
from npd_ascend.train.reader import Reader, ahead, head_rows

ROW, VOCAB = 48, 53


def reader(world, rank=0, size=1, topk=True, vocab=VOCAB, packs="packs", part=None, **settings):
    loss = settings.pop("loss", {})
    s = TrainConfig(**{"global_batch": 4, "micro_batch": 2, "vocab_chunk_rows": 32, **settings}, loss=loss)
    corpus = Corpus(
        *(Dataset.open(world.root / k, k) for k in ("prompts", "rollouts", "selection")),
        registry.asked(s.loss) - {"advantages"},
    )
    corpus.advantages = world.advantages  # as a recipe with rewards stores them
    found = Dataset.open(world.root / packs, "packs")
    plans = [EpochPlan.read(found, e) for e in range(found.shards)]
    annotation = TopKReader(Dataset.open(world.root / "topk", "topk")) if topk else None
    return Reader(corpus, plans, annotation, s, ROW, 0, vocab, rank, size, part=part or Slice())


def all_batches(r):
    return [m for e, n in enumerate(r.steps) for b in range(n) for m in r.micro_batches(e, b)]


def tokens_of(world, r, micro):
    """(sample, t) of each head row, by walking through the rows."""
    out = []
    flat = micro.rows.input_ids.reshape(-1)
    starts = iter(micro.rows.starts)
    for s in micro.samples:
        start, p = int(next(starts)), world.prompts[s]
        text = np.concatenate([p, world.responses[s]])
        np.testing.assert_array_equal(flat[start : start + len(text)], text)
        out += [(s, t, start + len(p) + t - 1) for t in range(len(world.responses[s]))]
    return out


def test_every_token_once_an_epoch(world):
    r = reader(world)
    for epoch, steps in enumerate(r.steps):
        seen = []
        for b in range(steps):
            for m in r.micro_batches(epoch, b):
                rows = tokens_of(world, r, m)
                assert len(rows) == m.tokens
                for n, (s, t, position) in enumerate(rows):
                    assert m.positions[n] == position
                    assert m.inputs.labels[n] == world.responses[s][t]
                    np.testing.assert_array_equal(m.inputs.teacher_ids[n], world.topk[s].ids[t])
                    np.testing.assert_allclose(m.inputs.teacher_logprobs[n], world.topk[s].logprobs[t], atol=1e-3)
                    assert (m.inputs.weights[n] == world.weights[s]).all()
                assert not m.inputs.weights[m.tokens :].any() and not m.positions[m.tokens :].any()
                seen += [(s, t) for s, t, _ in rows]
        kept = [(s, t) for s in np.flatnonzero(world.keep) for t in range(len(world.responses[s]))]
        assert sorted(seen) == kept


@pytest.mark.parametrize("mean, length", [("token", None), ("sequence", None), ("constant", 16)])
@pytest.mark.parametrize("micro, size", [(2, 1), (4, 1), (1, 2)])
def test_means(world, mean, length, micro, size):
    """The weights make of a sum over tokens / tokens the mean that TRL calls dapo, grpo, dr_grpo, however a batch is
    split."""
    loss = {"mean": mean, "mean_length": length}
    parts = [reader(world, i, size, micro_batch=micro, loss=loss) for i in range(size)]
    value = {s: np.cos(np.arange(len(world.responses[s])) + s) for s in range(len(world.responses))}
    for epoch, steps in enumerate(parts[0].steps):
        for b in range(steps):
            total, samples = 0.0, []
            for m in (m for p in parts for m in p.micro_batches(epoch, b)):
                each = np.concatenate([world.weights[s] * value[s] for s in m.samples] or [np.zeros(0)])
                scale = np.concatenate([np.full(len(value[s]), world.weights[s]) for s in m.samples] or [np.zeros(0)])
                total += (m.inputs.weights[: m.tokens, 0] / np.where(scale > 0, scale, 1) * each).sum()
                samples += m.samples.tolist()
            weighted = [world.weights[s] * value[s] for s in samples]
            naive = {
                "token": sum(v.sum() for v in weighted) / sum(map(len, weighted)),
                "sequence": np.mean([v.mean() for v in weighted]),
                "constant": sum(v.sum() for v in weighted) / (len(weighted) * 16),
            }
            assert total / parts[0].tokens(epoch, b) == pytest.approx(naive[mean], rel=1e-5, abs=1e-7)


def test_log_prob_of_the_teacher(world):
    r = reader(world, loss={"terms": {"kl_sampled": 0.1}})
    assert "teacher_ids" not in r.names and "teacher_labels" in r.names
    for m in all_batches(r):
        want = np.concatenate([world.topk[s].sampled for s in m.samples])
        np.testing.assert_allclose(m.inputs.teacher_labels[: m.tokens], want, atol=0.05)
        assert not m.inputs.teacher_labels[m.tokens :].any()


def test_shapes_never_change(world):
    r = reader(world)
    batches = list(all_batches(r))
    shapes = {
        tuple(
            a.shape
            for a in (m.rows.input_ids, m.rows.position_ids, m.rows.segment_ids, m.positions, *m.inputs.pack(r.names))
        )
        for m in batches
    }
    n = r.head_rows
    assert shapes == {((2, ROW), (2, ROW), (2, ROW), (n,), (n,), (n, 2), (n, 4), (n, 4))}
    assert n >= max(m.tokens for m in all_batches(r)) and n % r.chunk == 0 and r.chunk <= 32
    assert {m.rows.longest for m in batches} == {max(m.rows.lengths.max() for m in batches)}


def test_ranks_share_a_batch_in_order(world):
    whole, parts = reader(world), [reader(world, rank=i, size=2, micro_batch=1) for i in range(2)]
    for epoch, steps in enumerate(whole.steps):
        for b in range(steps):
            want = np.concatenate([m.samples for m in whole.micro_batches(epoch, b)])
            got = np.concatenate([m.samples for p in parts for m in p.micro_batches(epoch, b)])
            np.testing.assert_array_equal(got, want)
            assert [p.tokens(epoch, b) for p in parts] == [whole.tokens(epoch, b)] * 2
            assert sum(m.tokens for m in whole.micro_batches(epoch, b)) == whole.tokens(epoch, b)
            np.testing.assert_array_equal(whole.samples(epoch, b), want)


def at(m, n):
    """The inputs of one row."""
    return [a[n].tolist() for a in vars(m.inputs).values() if a is not None]


def test_slices_share_the_tokens_of_a_batch(world):
    """Ranks that read the same rows have each token's loss once, at its position in the slice."""
    loss = {"token_weight": "position_decay"}
    whole, parts = reader(world, loss=loss), [reader(world, part=Slice(i, 3), loss=loss) for i in range(3)]
    assert len({p.head_rows for p in parts}) == 1 and parts[0].head_rows <= 2 * ROW // 3
    own = ROW // 3
    for m, *cut in zip(*map(all_batches, (whole, *parts)), strict=True):
        assert sum(c.tokens for c in cut) == m.tokens
        found = []
        for i, c in enumerate(cut):
            np.testing.assert_array_equal(c.rows.input_ids, m.rows.input_ids)
            row, position = np.divmod(c.positions[: c.tokens], own)
            found += [(r * ROW + i * own + p, *at(c, n)) for n, (r, p) in enumerate(zip(row, position, strict=True))]
            assert not c.inputs.weights[c.tokens :].any() and c.positions.max(initial=0) < 2 * own
        assert sorted(found) == sorted((m.positions[n], *at(m, n)) for n in range(m.tokens))


def test_without_a_teacher(world, monkeypatch):
    """A loss that does not look at the teacher reads no annotation, whether there is one or not."""
    monkeypatch.setattr(TopKReader, "read_many", None)  # would fail
    for topk in (False, True):
        for m in all_batches(reader(world, topk=topk, loss={"kd_weight": 0})):
            assert {n for n, a in vars(m.inputs).items() if a is not None} == {"labels", "weights"}
            assert m.inputs.weights.shape[1] == 1


@pytest.mark.parametrize(
    "loss", [{}, {"terms": {"forward_kl": 1}}, {"kd_weight": 0, "token_weight": "teacher_confidence"}]
)
def test_a_missing_annotation(world, loss):
    with pytest.raises(UserError, match="no teacher annotation; run annotate"):
        reader(world, topk=False, loss=loss)


def test_what_a_policy_gradient_reads(world, policy_terms):
    """Rollout log-probs and advantages of every token, as they are stored: nothing divides them by their sum."""
    r = reader(world, topk=False, loss={"terms": {"policy_terms:clipped": 1}, "token_weight": "position_decay"})
    assert abs(world.advantages.sum()) < 1e-5  # nothing could be divided by it
    for m in all_batches(r):
        assert m.inputs.teacher_ids is None and m.inputs.parameters is None
        for n, (s, t, _) in enumerate(tokens_of(world, r, m)):
            assert m.inputs.rollout_logprobs[n] == world.logprobs[s][t]
            assert m.inputs.advantages[n] == world.advantages[s]
        assert not m.inputs.advantages[m.tokens :].any() and not m.inputs.rollout_logprobs[m.tokens :].any()


def test_rollouts_without_log_probs(make_world, policy_terms):
    world = make_world()
    r = reader(world, topk=False, loss={"terms": {"policy_terms:clipped": 1}})
    r.corpus.rollout_logprobs = r.corpus.labels  # of no sample, as for reference answers
    with pytest.raises(UserError, match="reference answers lack"):
        all_batches(r)


def test_a_selection_without_advantages(world):
    with pytest.raises(UserError, match="holds no advantages"):
        Corpus(*(Dataset.open(world.root / k, k) for k in ("prompts", "rollouts", "selection")), {"advantages"})


def test_statistics_of_a_generation(world, monkeypatch):
    """The first phase of a token weight sees each kept sample once, in the order of the store, and with what the weight
    needs; the second gets its answer. Neither depends on epoch, rank or packing."""
    seen = []

    def highest(samples):
        seen.append([(s.count, float(s.teacher.entropy.max()), float(s.rollout_logprobs.sum())) for s in samples])
        return max(entropy for _, entropy, _ in seen[-1])

    entry = TokenWeight(
        "mine",
        lambda sample, stats: (1 + sample.teacher.entropy / stats).astype(np.float32),
        frozenset({"topk", "rollout_logprobs"}),
        highest,
    )
    monkeypatch.setattr(registry, "find_token_weight", lambda loss: entry)
    monkeypatch.setattr(reading, "find_token_weight", lambda loss: entry)
    monkeypatch.setattr(reading, "_BLOCK", 5)
    for r in (reader(world), reader(world, rank=1, size=2, micro_batch=1)):
        kept = np.flatnonzero(world.keep)
        want = [(len(world.responses[s]), world.topk[s].entropy.max(), world.logprobs[s].sum()) for s in kept]
        np.testing.assert_allclose(seen[-1], want, rtol=5e-3)
        top = max(world.topk[s].entropy.max() for s in kept)
        m = next(r.micro_batches(1, 0))
        w = np.concatenate([world.weights[s] * (1 + world.topk[s].entropy / top) for s in m.samples])
        np.testing.assert_allclose(m.inputs.weights[: m.tokens, 0], w, rtol=5e-3)
    assert len(seen) == 2


def test_weights_without_statistics_read_nothing_in_advance(world, monkeypatch):
    monkeypatch.setattr(TopKReader, "read_many", None)
    reader(world, loss={"token_weight": "teacher_confidence"})


def test_labels(make_world):
    world = make_world(labels=True)
    m = next(reader(world).micro_batches(0, 0))
    want = np.concatenate([(world.responses[s] + 1) % VOCAB for s in m.samples])
    np.testing.assert_array_equal(m.inputs.labels[: m.tokens], want)


@pytest.mark.parametrize("name", [n for n in TOKEN_WEIGHTS.names() if n != "none"])
def test_token_weights(world, name):
    m = next(reader(world, loss={"token_weight": name}).micro_batches(0, 0))
    want = []
    for s in m.samples:
        given = Tokens(len(world.responses[s]), world.topk[s], world.logprobs[s])
        want.append(world.weights[s] * TOKEN_WEIGHTS.find(name).weight(given, None))
    np.testing.assert_allclose(m.inputs.weights[: m.tokens], np.concatenate(want)[:, None].repeat(2, 1), rtol=5e-3)


def test_ids_beyond_the_vocabulary(world):
    with pytest.raises(UserError, match="beyond the vocabulary of 40"):
        all_batches(reader(world, vocab=40))


def test_a_selection_of_other_samples(make_world):
    world = make_world()
    chosen = Dataset(world.root / "selection", "selection", "selection")
    table = chosen.read_all()
    for i in range(3):
        part = table.slice(i * 8, 8)
        swapped = part["sample_id"].combine_chunks().take([1, 0, *range(2, 8)])
        chosen.write_table(i, part.set_column(0, "sample_id", swapped))
    chosen.finish(3)
    with pytest.raises(UserError, match="not of the samples"):
        reader(world)


@pytest.mark.parametrize("count,chunk,want", [(1, 32, 8), (32, 32, 32), (33, 32, 48), (100, 32, 128), (97, 1000, 104)])
def test_head_rows(count, chunk, want):
    assert head_rows([count, 0], chunk) == want


def test_reading_ahead_keeps_order_and_passes_errors_on():
    assert list(ahead(iter(range(9)), lambda x: x * x)) == [x * x for x in range(9)]
    got = ahead(iter(range(9)), lambda x: 1 // (3 - x))
    assert [next(got) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        list(got)


def test_more_segments_than_attention_tells_apart(world):
    """Two rows a micro-batch: their samples and one tail of padding each."""
    r = reader(world)
    plan = r.plans[0]
    most = max(int(plan.first[min(i + 2, len(plan))] - plan.first[i]) for i in range(0, len(plan), 2))
    r.check_segments(plan)  # CPU: any number
    r.max_segments = most + 2
    r.check_segments(plan)
    r.max_segments = most + 1
    with pytest.raises(UserError, match=f"holds {most} samples in 2 rows, flash attention tells {most + 1} apart"):
        r.check_segments(plan)


@pytest.fixture
def masked(make_world):
    world = make_world(masked=True, seed=5)
    assert 0.2 < np.concatenate(world.written).mean() < 0.9
    return world


def test_masked_tokens_are_read_and_not_trained_on(masked):
    r = reader(masked)
    for epoch, steps in enumerate(r.steps):
        seen = []
        for b in range(steps):
            batches = list(r.micro_batches(epoch, b))
            assert (
                sum(m.tokens for m in batches)
                == r.tokens(epoch, b)
                == sum(masked.written[s].sum() for s in r.samples(epoch, b))
            )
            assert r.row_tokens(epoch, b) == sum(m.rows.tokens for m in batches)
            for m in batches:
                rows = [row for row in tokens_of(masked, r, m) if masked.written[row[0]][row[1]]]
                assert len(rows) == m.tokens
                for n, (s, t, position) in enumerate(rows):
                    assert m.positions[n] == position and m.inputs.labels[n] == masked.responses[s][t]
                    np.testing.assert_array_equal(m.inputs.teacher_ids[n], masked.topk[s].ids[t])
                    assert (m.inputs.weights[n] == masked.weights[s]).all()
                assert not m.inputs.weights[m.tokens :].any()
                seen += [(s, t) for s, t, _ in rows]
        assert sorted(seen) == [(s, t) for s in np.flatnonzero(masked.keep) for t in np.flatnonzero(masked.written[s])]


def test_token_weights_see_the_written_tokens_alone(masked, monkeypatch):
    """Masked tokens neither count in a generation's statistics nor as places in an answer."""
    weigh = TokenWeight(
        "own",
        lambda tokens, most: np.linspace(1, 2, tokens.count) / most,
        frozenset({"topk", "rollout_logprobs"}),
        lambda all_of: max(t.count for t in all_of),
    )
    monkeypatch.setattr(reading, "find_token_weight", lambda loss: weigh)
    r = reader(masked)
    most = max(masked.written[s].sum() for s in np.flatnonzero(masked.keep))
    for m in all_batches(r):
        rows = [row for row in tokens_of(masked, r, m) if masked.written[row[0]][row[1]]]
        for n, (s, t, _) in enumerate(rows):
            place, count = masked.written[s][:t].sum(), masked.written[s].sum()
            wanted = masked.weights[s] * np.linspace(1, 2, count)[place] / most
            np.testing.assert_allclose(m.inputs.weights[n], wanted, rtol=1e-6)


def test_slices_of_masked_rows_share_the_written_tokens(masked):
    whole, parts = reader(masked), [reader(masked, part=Slice(i, 3)) for i in range(3)]
    for m, *cut in zip(*map(all_batches, (whole, *parts)), strict=True):
        assert sum(c.tokens for c in cut) == m.tokens
