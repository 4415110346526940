"""The whole stage against full log-softmax of each sequence by itself."""

import shutil

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.annotate import head as head_module  # noqa: E402
from npd_ascend.annotate.distribution import summarise  # noqa: E402
from npd_ascend.annotate.head import ChunkedHead  # noqa: E402
from npd_ascend.annotate.stage import run  # noqa: E402
from npd_ascend.config.jobs import AnnotateJob, Device  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.pipeline.child import write_job  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.store.topk_shard import TopKReader  # noqa: E402

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
        x = hidden[len(context) - 1: n - 1] @ head.T
        x -= x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    return logprobs


def job(tmp_path, model, prompts, rollouts, role="teacher", name="out", unconditioned=True, vocabulary=150, **settings):
    return AnnotateJob(out=tmp_path / name / "scores", fingerprint="s", prompts=prompts, rollouts=rollouts, model=model,
                       vocabulary=vocabulary,
                       topk_out=tmp_path / name / "topk" if role == "teacher" else None, topk_fingerprint="t",
                       role=role, unconditioned=unconditioned, settings=AnnotateConfig(**{**SETTINGS, **settings}))


def scores(j):
    return Dataset.open(j.out, "scores").read_all().to_pydict()


def test_teacher_equals_full_log_softmax(tmp_path, model, data, full):
    prompts, rollouts, samples = data()
    j = job(tmp_path, model, prompts, rollouts)
    run(j)
    got = scores(j)
    reader = TopKReader(Dataset.open(j.topk_out, "topk"))
    assert len(reader) == len(samples) == len(got["tokens"])
    checked = 0
    for i, (context, response, _) in enumerate(samples):
        assert got["tokens"][i] == len(response)
        topk = reader.read(i)
        assert len(topk) == len(response)
        if not len(response):
            assert np.isnan([got[c][i] for c in ("nll_cond", "nll_uncond", "entropy", "topk_mass")]).all()
            continue
        logp = full(context, response)
        sampled = logp[np.arange(len(response)), response]
        alone = full(HEADER, response)[np.arange(len(response)), response]
        entropy = -(np.exp(logp) * logp).sum(1)
        best = -np.sort(-logp, axis=1)[:, :6]
        assert got["nll_cond"][i] == pytest.approx(-sampled.mean(), abs=1e-4)
        assert got["nll_uncond"][i] == pytest.approx(-alone.mean(), abs=1e-4)
        assert got["entropy"][i] == pytest.approx(entropy.mean(), abs=1e-4)
        assert got["topk_mass"][i] == pytest.approx(np.exp(best).sum(1).mean(), abs=1e-4)
        np.testing.assert_allclose(np.take_along_axis(logp, topk.ids.astype(int), 1), best, atol=1e-4)
        np.testing.assert_allclose(topk.logprobs, best, atol=2e-3)  # the codec's precision
        np.testing.assert_allclose(topk.sampled, sampled, atol=2e-3)
        checked += 1
    assert checked > 20


def test_k_of_the_whole_vocabulary_is_the_whole_distribution(tmp_path, model, data, full):
    prompts, rollouts, samples = data(shards=1, per_shard=2, empty=False)
    j = job(tmp_path, model, prompts, rollouts, k=150)
    run(j)
    assert np.allclose(scores(j)["topk_mass"], 1, atol=1e-5)
    reader = TopKReader(Dataset.open(j.topk_out, "topk"))
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
    for column in ("nll_cond", "nll_uncond", "entropy", "topk_mass"):
        np.testing.assert_allclose(scores(one)[column], scores(two)[column], atol=1e-5)


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


def test_a_shard_made_again_is_identical(tmp_path, model, data):
    prompts, rollouts, _ = data(shards=2)
    j = job(tmp_path, model, prompts, rollouts)
    run(j)
    files = [Dataset.open(j.out, "scores").path(1), Dataset.open(j.topk_out, "topk").path(1)]
    before = [f.read_bytes() for f in files]
    untouched = Dataset.open(j.out, "scores").path(0).stat().st_mtime_ns
    Dataset(j.out, "scores", "s").discard(1)
    Dataset(j.topk_out, "topk", "t").discard(1)
    run(j)
    assert [f.read_bytes() for f in files] == before
    assert Dataset.open(j.out, "scores").path(0).stat().st_mtime_ns == untouched


def test_complete_output_starts_no_engine(tmp_path, model, data, monkeypatch):
    prompts, rollouts, _ = data(shards=1)
    j = job(tmp_path, model, prompts, rollouts)
    run(j)
    gone = j.model_copy(update={"model": tmp_path / "nowhere"})
    run(gone)


def test_student_from_the_rollout(tmp_path, model, data):
    prompts, rollouts, samples = data(shards=1)
    j = job(tmp_path, tmp_path / "hf", prompts, rollouts, role="student", student_nll="rollout", unconditioned=False)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text((model / "config.json").read_text())
    run(j)  # there are no weights: nothing is prefilled
    got = scores(j)
    expected = [-np.mean(np.float32(lp), dtype=np.float64) if lp else np.nan for *_, lp in samples]
    np.testing.assert_allclose(got["nll_cond"], expected)
    assert np.isnan(got["nll_uncond"]).all() and np.isnan(got["entropy"]).all()


def test_rollouts_without_logprobs_are_prefilled(tmp_path, model, data):
    prompts, rollouts, _ = data(shards=1, logprobs=False)
    one = job(tmp_path, model, prompts, rollouts, role="student", student_nll="rollout", name="a")
    two = job(tmp_path, model, prompts, rollouts, role="student", student_nll="prefill", name="b")
    run(one)
    run(two)
    assert scores(one)["nll_cond"][0] > 0
    np.testing.assert_array_equal(scores(one)["nll_cond"], scores(two)["nll_cond"])


@pytest.mark.parametrize(("settings", "words"), [
    ({"row_length": 16}, "annotate.row_length is 16"),
    ({"k": 151}, "annotate.k is 151"),
])
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
    got, reader = scores(j), TopKReader(Dataset.open(j.topk_out, "topk"))
    assert reader.vocab_size == vocabulary
    for i, (context, response, _) in enumerate(samples):
        if not len(response):
            continue
        logp, topk, at = full(context, response), reader.read(i), np.arange(len(response))
        assert topk.ids.max() < vocabulary
        np.testing.assert_allclose(topk.logprobs, -np.sort(-logp, axis=1)[:, :6], atol=2e-3)
        assert got["nll_cond"][i] == pytest.approx(-logp[at, response].mean(), abs=1e-4)
        assert got["nll_uncond"][i] == pytest.approx(-full(HEADER, response)[at, response].mean(), abs=1e-4)
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
    write_job(tmp_path / "job.json", "annotate", j)
    done = starved(tmp_path / "job.json", 1 << 30)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: annotate: out of memory"), last
    assert "annotate.micro_batch" in last
    assert not Dataset(j.out, "scores", "s").complete and not list(tmp_path.rglob(".tmp-*"))
