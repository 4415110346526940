"""The whole stage against full log-softmax of each sequence by itself."""

import shutil

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.annotate import head as head_module  # noqa: E402
from npd_ascend.annotate.distribution import summarise  # noqa: E402
from npd_ascend.annotate.head import ChunkedHead  # noqa: E402
from npd_ascend.annotate.job import AnnotateJob  # noqa: E402
from npd_ascend.annotate.prefill import Scorer  # noqa: E402
from npd_ascend.annotate.stage import run  # noqa: E402
from npd_ascend.config.job import Device, Target  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.store.topk_shard import TopKReader  # noqa: E402
from npd_ascend.workers.jobfile import write_job  # noqa: E402

pytestmark = pytest.mark.mindspore
HEADER = [1, 7, 8]
SETTINGS = {"k": 6, "row_length": 64, "micro_batch": 2, "vocab_chunk_rows": 40, "value_bits": 16}


@pytest.fixture(scope="module")
def full(model):
    return full_logprobs(model, 150)


def full_logprobs(model, vocabulary):
    """(context, response) -> full log-probs [T, V] in float64, one sequence a pass, nothing packed."""
    net = build(ModelSpec.from_folder(model), Device(), 64)
    load_hf(net, model)
    head = net.head_weight.asnumpy()[:vocabulary].astype(np.float64)

    def logprobs(context, response):
        n = len(context) + len(response)
        ids, positions, segments = np.zeros((3, 1, 64), np.int32)
        ids[0, :n] = np.concatenate([context, response])
        positions[0, :n] = np.arange(n)
        segments[0, n:] = -1
        hidden = net(*map(ms.Tensor, (ids, positions, segments))).asnumpy()
        x = hidden[len(context) - 1 : n - 1] @ head.T
        x -= x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    return logprobs


ALL = ("scores", "topk", "unconditioned")


def job(tmp_path, model, prompts, rollouts, role="teacher", name="out", what=ALL, vocabulary=150, **settings):
    targets = {w: Target(folder=tmp_path / name / w, fingerprint=w) for w in what}
    return AnnotateJob(
        fingerprint="",
        prompts=prompts,
        rollouts=rollouts,
        model=model,
        role=role,
        **targets,
        vocabulary=vocabulary,
        settings=AnnotateConfig(**{**SETTINGS, **settings}),
    )


def made(j, what):
    return Dataset(j.targets[what].folder, "topk" if what == "topk" else "scores", what)


def scores(j, what="scores"):
    return made(j, what).read_all().to_pydict()


class Counting:
    """Scorers that note what they are asked: (model's folder, with the prompt or not, k, samples)."""

    def __init__(self):
        self.asked = []

    def __call__(self, model, spec, settings, device, **_):
        scorer, real = Scorer(model, spec, settings, device), None

        def score(contexts, responses, k, done=lambda samples, tokens: None):
            alone = all(list(c) == HEADER for c in contexts)
            self.asked.append((model.name, "alone" if alone else "after", k, len(responses)))
            return real(contexts, responses, k, done)

        real, scorer.score = scorer.score, score
        return scorer


def test_teacher_equals_full_log_softmax(tmp_path, model, data, full):
    prompts, rollouts, samples = data()
    j = job(tmp_path, model, prompts, rollouts)
    run(j)
    got, without, topk_extra = scores(j), scores(j, "unconditioned"), made(j, "topk").manifest["shards"]
    reader = TopKReader(Dataset.open(j.topk.folder, "topk"))
    masses = []
    assert len(reader) == len(samples) == len(got["tokens"])
    checked = 0
    for i, (context, response, _) in enumerate(samples):
        assert got["tokens"][i] == len(response)
        topk = reader.read(i)
        assert len(topk) == len(response)
        if not len(response):
            assert np.isnan([x[c][i] for c in ("nll", "entropy") for x in (got, without)]).all()
            continue
        logp = full(context, response)
        sampled = logp[np.arange(len(response)), response]
        alone = full(HEADER, response)[np.arange(len(response)), response]
        entropy = -(np.exp(logp) * logp).sum(1)
        best = -np.sort(-logp, axis=1)[:, :6]
        assert got["nll"][i] == pytest.approx(-sampled.mean(), abs=1e-4)
        assert without["nll"][i] == pytest.approx(-alone.mean(), abs=1e-4)
        assert got["entropy"][i] == pytest.approx(entropy.mean(), abs=1e-4)
        masses.append(np.exp(best).sum())
        np.testing.assert_allclose(np.take_along_axis(logp, topk.ids.astype(int), 1), best, atol=1e-4)
        np.testing.assert_allclose(topk.logprobs, best, atol=2e-3)  # the codec's precision
        np.testing.assert_allclose(topk.sampled, sampled, atol=2e-3)
        checked += 1
    assert checked > 20
    assert sum(r["meta"]["mass"] for r in topk_extra) == pytest.approx(sum(masses), rel=1e-4)


def test_k_of_the_whole_vocabulary_is_the_whole_distribution(tmp_path, model, data, full):
    prompts, rollouts, samples = data(shards=1, per_shard=2, empty=False)
    j = job(tmp_path, model, prompts, rollouts, k=150)
    run(j)
    (record,) = made(j, "topk").manifest["shards"]
    assert record["meta"]["mass"] == pytest.approx(record["meta"]["tokens"], rel=1e-5)
    reader = TopKReader(Dataset.open(j.topk.folder, "topk"))
    for i, (context, response, _) in enumerate(samples):
        topk, logp = reader.read(i), full(context, response)
        assert (np.sort(topk.ids, 1) == np.arange(150)).all()
        np.testing.assert_allclose(topk.logprobs, np.take_along_axis(logp, topk.ids.astype(int), 1), atol=2e-3)


def test_rows_and_batches_do_not_matter(tmp_path, model, data):
    prompts, rollouts, _ = data(shards=1)
    one = job(tmp_path, model, prompts, rollouts)
    two = job(tmp_path, model, prompts, rollouts, name="other", row_length=112, micro_batch=1, vocab_chunk_rows=9)
    run(one)
    run(two)
    for what in ("scores", "unconditioned"):
        for column in ("nll", "entropy"):
            np.testing.assert_allclose(scores(one, what)[column], scores(two, what)[column], atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_chunks_do_not_matter(rows):
    rng = np.random.default_rng(0)
    hidden = ms.Tensor(rng.standard_normal((60, 16)).astype(np.float32))
    weight = ms.Parameter(ms.Tensor(rng.standard_normal((101, 16)).astype(np.float32)))
    at, targets = rng.integers(0, 60, 45), rng.integers(0, 101, 45)
    whole = summarise(hidden.asnumpy()[at] @ weight.asnumpy().T, targets, 3)
    chunked = ChunkedHead(weight, rows, on_host=True)(hidden, at, targets, 3)
    assert np.array_equal(whole.ids, chunked.ids)
    for name in ("logprobs", "logz", "sampled", "entropy"):
        np.testing.assert_allclose(getattr(chunked, name), getattr(whole, name), atol=1e-5)


@pytest.mark.parametrize("gone", [ALL, ("topk",), ("scores",), ("unconditioned",)])
def test_what_is_made_again_is_identical_and_alone(tmp_path, model, data, gone):
    prompts, rollouts, _ = data(shards=2)
    j = job(tmp_path, model, prompts, rollouts)
    run(j)
    files = {(what, i): made(j, what).path(i) for what in ALL for i in (0, 1)}
    before = {key: (f.read_bytes(), f.stat().st_mtime_ns) for key, f in files.items()}
    for what in gone:
        made(j, what).discard(1)
    counting = Counting()
    run(j, counting)
    assert {key: f.read_bytes() for key, f in files.items()} == {key: data for key, (data, _) in before.items()}
    kept = [key for key, f in files.items() if f.stat().st_mtime_ns == before[key][1]]
    assert kept == [key for key in files if key[0] not in gone or key[1] == 0]
    n = made(j, "scores").manifest["shards"][1]["rows"]
    after = [("hf", "after", 6 if "topk" in gone else 0, n)] if {"scores", "topk"} & set(gone) else []
    assert counting.asked == after + ([("hf", "alone", 0, n)] if "unconditioned" in gone else [])


def test_a_need_that_comes_later_is_computed_alone(tmp_path, model, data):
    prompts, rollouts, samples = data(shards=1)
    counting = Counting()
    whole = job(tmp_path, model, prompts, rollouts, name="whole")
    run(whole)
    for what, asked in (
        (("scores",), ("after", 0)),
        (("scores", "unconditioned"), ("alone", 0)),
        (ALL, ("after", 6)),
        (("scores",), None),
    ):
        counting.asked.clear()
        run(job(tmp_path, model, prompts, rollouts, name="bit by bit", what=what), counting)
        assert counting.asked == ([("hf", *asked, len(samples))] if asked else [])
    bits = job(tmp_path, model, prompts, rollouts, name="bit by bit")
    assert [made(whole, w).path(0).read_bytes() for w in ALL] == [made(bits, w).path(0).read_bytes() for w in ALL]


def test_complete_output_starts_no_engine(tmp_path, model, data, monkeypatch):
    prompts, rollouts, _ = data(shards=1)
    j = job(tmp_path, model, prompts, rollouts)
    run(j)
    gone = j.model_copy(update={"model": tmp_path / "nowhere"})
    run(gone)


def test_student_from_the_rollout(tmp_path, model, data):
    prompts, rollouts, samples = data(shards=1)
    j = job(tmp_path, tmp_path / "hf", prompts, rollouts, "student", what=("scores",), student_nll="rollout")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text((model / "config.json").read_text())
    run(j)  # there are no weights: nothing is prefilled
    got = scores(j)
    expected = [-np.mean(np.float32(lp), dtype=np.float64) if lp else np.nan for *_, lp in samples]
    np.testing.assert_allclose(got["nll"], expected)
    assert np.isnan(got["entropy"]).all()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_masked_tokens_do_not_count_in_scores(tmp_path, model, data, role):
    """They are read: what follows is scored after them. Top-k is of all tokens, so that it stays aligned."""

    def masked(ids):
        return [1, len(ids) - 1] if len(ids) > 4 else None

    def kept(values):
        return np.delete(values, slice(1, len(values) - 1)) if len(values) > 4 else values

    student = role == "student"
    prompts, rollouts, samples = data(shards=1, logprobs=student, masked=masked)
    j = job(tmp_path, model, prompts, rollouts, role, what=("scores",) if student else ALL, student_nll="rollout")
    run(j)
    if student:
        values, entropy = [np.float32(lp) for *_, lp in samples], None
    else:
        reader = TopKReader(made(j, "topk"))
        notes = [reader.read(i) for i in range(len(reader))]
        assert [len(n) for n in notes] == [len(r) for _, r, _ in samples]
        values, entropy = [n.sampled for n in notes], [n.entropy for n in notes]
    got = scores(j)
    assert got["tokens"] == [len(kept(v)) for v in values] and any(len(v) > 4 for v in values)
    np.testing.assert_allclose(
        got["nll"], [-kept(v).mean(dtype=np.float64) if len(v) else np.nan for v in values], atol=0.05
    )
    if entropy:
        np.testing.assert_allclose(got["entropy"], [kept(v).mean() if len(v) else np.nan for v in entropy], atol=0.05)
        whole = job(tmp_path, model, prompts, data(shards=1, logprobs=False, name="whole")[1], name="whole")
        run(whole)
        assert not np.allclose(scores(whole)["nll"], got["nll"], equal_nan=True)


def test_rollouts_without_logprobs_are_prefilled(tmp_path, model, data):
    prompts, rollouts, _ = data(shards=1, logprobs=False)
    one, two = (
        job(tmp_path, model, prompts, rollouts, "student", nll, ("scores",), student_nll=nll)
        for nll in ("rollout", "prefill")
    )
    run(one)
    run(two)
    assert scores(one)["nll"][0] > 0
    np.testing.assert_array_equal(scores(one)["nll"], scores(two)["nll"])


@pytest.mark.parametrize(
    ("settings", "words"), [({"row_length": 16}, "annotate.row_length is 16"), ({"k": 151}, "annotate.k is 151")]
)
def test_settings_that_cannot_work(tmp_path, model, data, settings, words):
    prompts, rollouts, _ = data(shards=1)
    with pytest.raises(UserError, match=words):
        run(job(tmp_path, model, prompts, rollouts, **settings))


def test_foreign_tokens_are_named(tmp_path, model, data):
    import json

    prompts, rollouts, _ = data(shards=1)
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    with pytest.raises(UserError, match="its logits cover 40 ids but the tokenizer has 150"):
        run(job(tmp_path, tmp_path, prompts, rollouts))
    with pytest.raises(UserError, match=r"a prompt holds token id \d+ but the vocabulary has 40"):
        run(job(tmp_path, model, prompts, rollouts, vocabulary=40))


@pytest.mark.parametrize("vocabulary", [149, 131])
def test_padding_is_neither_among_the_best_nor_in_any_sum(tmp_path, model, data, loud_padding, vocabulary):
    """Logits wider than the tokenizer, padding louder than all tokens: everything is over the tokenizer's ids."""
    padded = loud_padding(shutil.copytree(model, tmp_path / "padded"), vocabulary)
    prompts, rollouts, samples = data(shards=1)
    full = full_logprobs(padded, vocabulary)
    j = job(tmp_path, padded, prompts, rollouts, vocabulary=vocabulary)
    run(j)
    got, alone, reader = scores(j), scores(j, "unconditioned"), TopKReader(made(j, "topk"))
    assert reader.vocab_size == vocabulary
    for i, (context, response, _) in enumerate(samples):
        if not len(response):
            continue
        logp, topk, at = full(context, response), reader.read(i), np.arange(len(response))
        assert topk.ids.max() < vocabulary
        np.testing.assert_allclose(topk.logprobs, -np.sort(-logp, axis=1)[:, :6], atol=2e-3)
        assert got["nll"][i] == pytest.approx(-logp[at, response].mean(), abs=1e-4)
        assert alone["nll"][i] == pytest.approx(-full(HEADER, response)[at, response].mean(), abs=1e-4)
        assert got["entropy"][i] == pytest.approx(-(np.exp(logp) * logp).sum(1).mean(), abs=1e-4)


def test_summary_in_the_graph_equals_the_one_on_the_host():
    rng = np.random.default_rng(0)
    hidden = ms.Tensor(rng.standard_normal((50, 16)).astype(np.float32))
    weight = ms.Parameter(ms.Tensor(rng.standard_normal((211, 16)).astype(np.float32)))
    at, targets = rng.integers(0, 50, 33), rng.integers(0, 211, 33)
    for k in (0, 5):
        host = ChunkedHead(weight, 8, on_host=True)(hidden, at, targets, k)
        graph = ChunkedHead(weight, 20, on_host=False)(hidden, at, targets, k)
        assert np.array_equal(host.ids, graph.ids)
        for name in ("logprobs", "logz", "sampled", "entropy"):
            np.testing.assert_allclose(getattr(host, name), getattr(graph, name), atol=1e-5)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("vocabulary", [210, 100, 5])
def test_padding_on_the_host_and_in_the_graph(vocabulary, on_host):
    """As if the head had no such rows."""
    rng = np.random.default_rng(0)
    hidden = ms.Tensor(rng.standard_normal((50, 16)).astype(np.float32))
    rows = rng.standard_normal((211, 16)).astype(np.float32)
    rows[vocabulary:] *= 30
    at, targets = rng.integers(0, 50, 33), rng.integers(0, vocabulary, 33)
    whole, real = ms.Parameter(ms.Tensor(rows)), ms.Parameter(ms.Tensor(rows[:vocabulary].copy()))
    for k in (0, 5):
        got = ChunkedHead(whole, 20, on_host=on_host, vocabulary=vocabulary)(hidden, at, targets, k)
        want = ChunkedHead(real, 20, on_host=True)(hidden, at, targets, k)
        assert np.array_equal(got.ids, want.ids)
        for name in ("logprobs", "logz", "sampled", "entropy"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-5)


def test_no_more_than_a_chunk_of_logits_at_once(monkeypatch):
    seen = []
    real = head_module.summarise
    monkeypatch.setattr(head_module, "summarise", lambda x, t, k: seen.append(x.shape) or real(x, t, k))
    hidden = ms.Tensor(np.ones((64, 4), np.float32))
    weight = ms.Parameter(ms.Tensor(np.ones((30, 4), np.float32)))
    ChunkedHead(weight, 16, on_host=True)(hidden, np.arange(39), np.zeros(39, int), 2)
    assert [s[0] for s in seen] == [16, 16, 4, 3]


def test_out_of_memory_names_the_knobs(tmp_path, model, data, starved):
    """Attention over 1,024 rows of 1,024 tokens takes more than a GiB."""
    prompts, rollouts, _ = data()
    j = job(tmp_path, model, prompts, rollouts, row_length=1024, micro_batch=1024)
    write_job(tmp_path / "job.json", "annotate_teacher", j)
    done = starved(tmp_path / "job.json", 1 << 30)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: annotate: out of memory"), last
    assert "annotate.micro_batch" in last
    assert not made(j, "scores").complete and not list(tmp_path.rglob(".tmp-*"))
