"""The real engine, against transformers and against itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from npd_ascend.rollout.engine import Engine, set_environment  # noqa: E402

set_environment("cpu")  # read by torch when it is imported

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.rollout import live, stage  # noqa: E402
from npd_ascend.rollout.job import LiveJob  # noqa: E402
from npd_ascend.rollout.pool import RolloutPool  # noqa: E402
from npd_ascend.rollout.requests import Answer, Request, requests_of  # noqa: E402
from npd_ascend.rollout.shards import Board, Shard  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.store.identity import sample_seed  # noqa: E402

PROMPTS, SHARD, VOCAB = 40, 16, 128


@pytest.fixture(scope="module")
def prompts(tmp_path_factory, make_prompts) -> Path:
    return make_prompts(tmp_path_factory.mktemp("data") / "prompts", PROMPTS, SHARD)


@pytest.fixture(scope="module")
def engine(checkpoints, prompts, make_job):
    engine = Engine(make_job(Path("unused"), prompts, checkpoints[0]))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory, checkpoints, prompts, make_job, engine):
    """Rollouts of the whole job, undisturbed, by one engine: (job, table)."""
    job = make_job(tmp_path_factory.mktemp("plain") / "out", prompts, checkpoints[0])
    stage.work(job, engine, lambda **counts: None)
    return job, Dataset.open(job.out, "rollouts").read_all()


@pytest.fixture(scope="module")
def reference(checkpoints) -> LlamaForCausalLM:
    return transformers_model(checkpoints[0])


def transformers_model(folder: Path) -> LlamaForCausalLM:
    """The same weights in transformers: openPangu-Embedded is Llama with biases on q, k, v and o."""
    config = json.loads((folder / "config.json").read_text())
    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            **{k: config[k] for k in keys},
            attention_bias=True,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        )
    )
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert not missing.missing_keys
    return model.eval()


def logprobs_of(
    model: LlamaForCausalLM, prompt: list[int], response: list[int], vocabulary: int | None = None
) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, :vocabulary].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def drain(engine: Engine, job, requests: list[Request]) -> dict[int, Answer]:
    for r in requests:
        engine.submit(f"0-{r.row}", r, engine.params(job, r))
    done: dict[int, Answer] = {}
    while len(done) < len(requests):
        done |= {int(name.split("-")[1]): answer for name, answer in engine.step()}
    return done


def same(a: dict[int, Answer], b: dict[int, Answer]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[i].ids, b[i].ids) and np.allclose(a[i].logprobs, b[i].logprobs, atol=2e-5) for i in a
    )


def test_greedy_equals_generate(plain, prompts, reference):
    rows = [r for r in plain[1].to_pylist() if r["path"] == 0][:12]
    for row, prompt in zip(rows, Dataset.open(prompts, "prompts").read(0)["prompt_ids"].to_pylist(), strict=False):
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=4, pad_token_id=0
        )
        assert row["response_ids"] == out[0, ids.shape[1] :].tolist()


def test_live_answers_are_the_stored_ones(plain, prompts, engine):
    """Asked one batch at a time, in memory and over the worker's messages: the same tokens and log-probs."""
    job, table = plain
    texts = Dataset.open(prompts, "prompts").read_all(["prompt_ids"])["prompt_ids"].to_pylist()
    rows = table.to_pylist()[:24]
    seeds = [None if r["path"] == 0 else sample_seed(job.seed, r["sample_id"]) for r in rows]
    asked = live.ask(job, [np.array(texts[r["prompt_index"]]) for r in rows], seeds)
    asked = LiveJob.model_validate_json(asked.model_dump_json())
    found = live.answer(asked, engine) | {"load_seconds": 0.5, "started": False}
    batch = live.read(json.loads(json.dumps(found)))
    assert batch.load_seconds == 0.5 and batch.seconds > 0
    for row, answer in zip(rows, batch.answers, strict=True):
        assert answer.ids.tolist() == row["response_ids"] and answer.finish == row["finish_reason"]
        np.testing.assert_allclose(answer.logprobs, row["logprobs"], atol=2e-5)
    with pytest.raises(UserError, match="prompt 0 of a live batch"):
        live.answer(live.ask(job, [np.array([500])], [None]), engine)


def test_a_pool_answers_live(prompts, make_job, checkpoints, plain, tmp_path):
    """The process of a pool, weights reloaded between two batches, and an error that is the user's."""
    texts = Dataset.open(prompts, "prompts").read(0, ["prompt_ids"])["prompt_ids"].to_pylist()[:6]
    first = [r["response_ids"] for r in plain[1].to_pylist() if r["path"] == 0][:6]
    with RolloutPool(Path(sys.executable), 1, tmp_path) as pool:

        def ask(model):
            return pool.answer(make_job(tmp_path / "x", prompts, model), [np.array(t) for t in texts], [None] * 6)

        a, b, c = ask(checkpoints[0]), ask(checkpoints[1]), ask(checkpoints[0])
        assert a.started and a.load_seconds > 0 and not b.started and b.load_seconds > 0
        assert [x.ids.tolist() for x in a.answers] == [x.ids.tolist() for x in c.answers] == first
        assert [x.ids.tolist() for x in b.answers] != first
        with pytest.raises(UserError, match="live batch"):
            pool.answer(make_job(tmp_path / "x", prompts, checkpoints[0]), [np.array([], int)], [None])


def test_logprobs_equal_transformers(plain, prompts, reference):
    texts = Dataset.open(prompts, "prompts").read_all(["prompt_ids"])["prompt_ids"].to_pylist()
    for row in plain[1].to_pylist():
        expected = logprobs_of(reference, texts[row["prompt_index"]], row["response_ids"])
        assert np.abs(np.float32(row["logprobs"]) - expected).max() < 1e-4


def test_logprobs_of_a_cooled_path_are_raw(engine, prompts, make_job, checkpoints, reference):
    job = make_job(Path("unused"), prompts, checkpoints[0], greedy=False, temperature=0.5, top_p=0.9, top_k=20)
    requests = requests_of(job, 0, Dataset.open(prompts, "prompts").read(0))
    for row, answer in drain(engine, job, requests).items():
        expected = logprobs_of(reference, requests[row].prompt_ids, answer.ids.tolist())
        assert np.abs(answer.logprobs - expected).max() < 1e-4


def test_finish_reasons(plain):
    rows = plain[1].to_pylist()
    stopped = [r for r in rows if r["finish_reason"] == "stop"]
    assert stopped and len(stopped) < len(rows)
    for row in rows:
        if row["finish_reason"] == "stop":
            assert row["response_ids"][-1] == 4 and 4 not in row["response_ids"][:-1]
        else:
            assert row["finish_reason"] == "length" and len(row["response_ids"]) == 40 and 4 not in row["response_ids"]
    assert Dataset.open(plain[0].out, "rollouts").extra["truncated"] == len(rows) - len(stopped)


def test_extra_stop_tokens_and_room(engine, prompts, make_job, checkpoints, plain):
    stop = plain[1]["response_ids"].to_pylist()[0][2]
    job = make_job(Path("unused"), prompts, checkpoints[0], samples=0, stop_token_ids=[stop], max_model_len=33)
    table = Dataset.open(prompts, "prompts").read(0)
    requests = requests_of(job, 0, table)
    whole = {r["prompt_index"]: r["response_ids"] for r in plain[1].to_pylist() if r["path"] == 0}
    for row, answer in drain(engine, job, requests).items():
        expected = whole[row][: 33 - len(requests[row].prompt_ids)]
        ends = [i for i, t in enumerate(expected) if t in (4, stop)]
        expected = expected[: ends[0] + 1] if ends else expected
        assert answer.ids.tolist() == expected and answer.finish == ("stop" if ends else "length")


def test_seeds_do_not_depend_on_order_or_company(engine, prompts, make_job, checkpoints):
    job = make_job(Path("unused"), prompts, checkpoints[0], samples=3)
    requests = requests_of(job, 0, Dataset.open(prompts, "prompts").read(0))
    first = drain(engine, job, requests)
    shuffled = [requests[i] for i in np.random.default_rng(0).permutation(len(requests))]
    assert same(first, drain(engine, job, shuffled))
    few = requests[5:9]
    alone = drain(engine, job, few)
    assert same(alone, {r.row: first[r.row] for r in few})
    sampled = [first[r.row].ids.tolist() for r in requests if r.seed is not None]
    assert len({tuple(s) for s in sampled}) == len(sampled)
    other = make_job(Path("unused"), prompts, checkpoints[0], samples=3, generation=1)
    later = drain(engine, other, requests_of(other, 0, Dataset.open(prompts, "prompts").read(0)))
    assert all(first[r.row].ids.tolist() != later[r.row].ids.tolist() for r in requests if r.seed is not None)
    assert all(first[r.row].ids.tolist() == later[r.row].ids.tolist() for r in requests if r.seed is None)


def test_reload_equals_a_fresh_engine(tmp_path, prompts, make_job, checkpoints, engine, plain):
    job = make_job(tmp_path / "b", prompts, checkpoints[1])
    assert engine.suits(job) and not engine.holds(checkpoints[1])
    how: list[str] = []
    stage.work(job, engine, lambda **counts: None, lambda what, verdict: how.append(what))
    fresh = make_job(tmp_path / "fresh", prompts, checkpoints[1])
    child = start_child(fresh, tmp_path)
    assert child.wait(120) == 0
    reloaded = Dataset.open(job.out, "rollouts").read_all()
    assert how == ["reload"]
    assert reloaded["response_ids"] == Dataset.open(fresh.out, "rollouts").read_all()["response_ids"]
    assert reloaded["response_ids"] != plain[1]["response_ids"]
    back = make_job(tmp_path / "a", prompts, checkpoints[0])
    stage.work(back, engine, lambda **counts: None)
    assert Dataset.open(back.out, "rollouts").read_all()["response_ids"] == plain[1]["response_ids"]


def test_reload_is_refused_in_flight_and_notices_weights_that_did_not_arrive(prompts, make_job, checkpoints, engine):
    job = make_job(Path("unused"), prompts, checkpoints[0])
    requests = requests_of(job, 0, Dataset.open(prompts, "prompts").read(0))[:2]
    for r in requests:
        engine.submit(f"0-{r.row}", r, engine.params(job, r))
    with pytest.raises(RuntimeError, match="in flight"):
        engine.reload(checkpoints[1])
    done = 0
    while done < 2:
        done += len(engine.step())
    with pytest.raises(RuntimeError, match="does not hold the weights"):
        engine._verify(checkpoints[1])


def test_other_shapes_do_not_suit(tmp_path, prompts, make_job, make_checkpoint, checkpoints, engine):
    assert not engine.suits(make_job(tmp_path, prompts, make_checkpoint(tmp_path / "m", rope_theta=1e4)))
    assert not engine.suits(make_job(tmp_path, prompts, checkpoints[0], max_model_len=129))
    assert not engine.suits(make_job(tmp_path, prompts, checkpoints[0], max_num_seqs=17))
    assert engine.suits(make_job(tmp_path, prompts, checkpoints[1], max_model_len=64, max_new_tokens=9, samples=3))


def test_checkpoints_that_are_none(tmp_path, prompts, make_job, make_checkpoint):
    with pytest.raises(UserError, match="no config.json"):
        Engine(make_job(tmp_path, prompts, tmp_path / "nowhere"))
    (make_checkpoint(tmp_path / "m") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        Engine(make_job(tmp_path, prompts, tmp_path / "m"))


def test_nan_weights_are_found(tmp_path, prompts, make_job, make_checkpoint, checkpoints, engine):
    bad = make_checkpoint(tmp_path / "m")
    weights = load_file(bad / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    job = make_job(tmp_path / "out", prompts, bad)
    with pytest.raises(UserError, match="NaN"):
        stage.work(job, engine, lambda **counts: None)
    while engine._engine.has_unfinished_requests():
        engine._engine.step()
    engine.reload(checkpoints[0])


def test_killed_process_resumes_to_the_same_dataset(tmp_path, make_prompts, make_job, checkpoints, engine):
    prompts = make_prompts(tmp_path / "prompts", 40, 40, seed=1)
    whole = make_job(tmp_path / "whole", prompts, checkpoints[0], samples=4)
    stage.work(whole, engine, lambda **counts: None)
    job = make_job(tmp_path / "out", prompts, checkpoints[0], samples=4)
    child = start_child(job, tmp_path)
    try:
        while child.poll() is None and not any(f.stat().st_size > 500 for f in job.out.glob("*.journal")):
            time.sleep(0.002)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    dataset = Dataset(job.out, "rollouts", job.fingerprint)
    index, table = Board(job).take()
    left = Shard(job, dataset, index, table).left
    assert index == 0 and 0 < left < 200
    made: list[int] = []
    stage.work(job, engine, lambda samples, **counts: made.append(samples))
    assert sum(made) == left
    assert_same_rollouts(dataset, Dataset.open(whole.out, "rollouts").read_all())


def test_two_workers_equal_one_and_reload_between_jobs(tmp_path, prompts, make_job, checkpoints, plain):
    with RolloutPool(Path(sys.executable), 2, tmp_path / "logs", env={"OMP_NUM_THREADS": "1"}) as pool:
        job = make_job(tmp_path / "a", prompts, checkpoints[0])
        pool.run(job)
        assert_same_rollouts(Dataset.open(job.out, "rollouts"), plain[1])
        before = [w._popen.pid for w in pool._workers.values()]
        second = make_job(tmp_path / "b", prompts, checkpoints[1])
        pool.run(second)
        third = make_job(tmp_path / "c", prompts, checkpoints[0], fingerprint="again")
        pool.run(third)
        assert [w._popen.pid for w in pool._workers.values()] == before
        assert_same_rollouts(Dataset.open(third.out, "rollouts"), plain[1])
        b = Dataset.open(second.out, "rollouts").read_all()
        assert b["response_ids"] != plain[1]["response_ids"]


@pytest.mark.slow
def test_an_engine_in_a_process_of_its_own_answers_and_reloads(tmp_path, prompts, make_job, checkpoints, plain):
    """As on NPUs, where vLLM spawns the engine core: configuration, requests and reloads reach it by message."""
    apart = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    with RolloutPool(Path(sys.executable), 1, tmp_path / "logs", env=apart) as pool:
        pool.run(make_job(tmp_path / "b", prompts, checkpoints[1]))
        before = [w._popen.pid for w in pool._workers.values()]
        job = make_job(tmp_path / "a", prompts, checkpoints[0])
        pool.run(job)
        assert [w._popen.pid for w in pool._workers.values()] == before
    assert_same_rollouts(Dataset.open(job.out, "rollouts"), plain[1])
    b = Dataset.open(tmp_path / "b", "rollouts").read_all()
    assert b["response_ids"] != plain[1]["response_ids"]


# The tests below start engines beside the shared one, which vLLM does not expect in one process: keep them last.


@pytest.mark.parametrize(
    ("config", "job", "text"),
    [
        ({"head_dim": 48}, {}, "heads of 48"),
        ({}, {"max_model_len": 1024}, "made for 512 positions"),
        ({}, {"kv_cache_gib": 1e-6}, "rollout.kv_cache_gib is too small"),
    ],
)
def test_settings_that_cannot_work(tmp_path, prompts, make_job, make_checkpoint, config, job, text):
    with pytest.raises(UserError, match=text) as e:
        Engine(make_job(tmp_path, prompts, make_checkpoint(tmp_path / "m", **config), **job))
    assert "\n" not in str(e.value)


def test_preempted_requests_are_unharmed(prompts, make_job, checkpoints, engine):
    """A KV cache for four sequences under sixteen running ones: vLLM has to preempt and recompute."""
    job = make_job(Path("unused"), prompts, checkpoints[0], max_model_len=200, max_new_tokens=170)
    small = job.model_copy(update={"settings": job.settings.model_copy(update={"kv_cache_gib": 8 * 2**17 / 2**30})})
    requests = [r for r in requests_of(job, 0, Dataset.open(prompts, "prompts").read(0)) if len(r.prompt_ids) < 30][:12]
    roomy, tight = Engine(job), Engine(small)  # not closed: that would take the process groups of all engines here
    assert same(drain(roomy, job, requests), drain(tight, small, requests))


def start_child(job, folder: Path) -> subprocess.Popen:
    """``stage.run(job)`` in a process of its own."""
    (folder / "job.json").write_text(job.model_dump_json())
    code = (
        "from pathlib import Path; from npd_ascend.rollout.job import RolloutJob\n"
        "from npd_ascend.rollout import stage\n"
        f"stage.run(RolloutJob.model_validate_json(Path({str(folder / 'job.json')!r}).read_text()))"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def assert_same_rollouts(dataset: Dataset, table) -> None:
    ours = dataset.read_all()
    assert ours.drop_columns(["logprobs"]) == table.drop_columns(["logprobs"])
    a, b = (np.concatenate(t["logprobs"].to_pylist()) for t in (ours, table))
    assert np.abs(a - b).max() < 2e-5


@pytest.fixture(scope="module")
def padded(tmp_path_factory, make_checkpoint, loud_padding) -> list[Path]:
    """Logits of 160 columns where the tokenizer has 128 ids, and the padding is louder than any token."""
    root = tmp_path_factory.mktemp("padded")
    return [loud_padding(make_checkpoint(root / name, seed, vocab_size=160), VOCAB) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def padded_engine(padded, prompts, make_job):
    engine = Engine(make_job(Path("unused"), prompts, padded[0]))
    yield engine
    engine.close()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 20}])
def test_padding_is_never_sampled_and_has_no_probability(tmp_path, prompts, make_job, padded, padded_engine, sampling):
    """Greedy and sampled paths; the stored log-probs are those of a softmax over the tokenizer's ids alone."""
    for model in (padded[1], padded[0]):  # new weights in between: the mask stays
        job = make_job(tmp_path / model.name, prompts, model, samples=2, **sampling)
        stage.work(job, padded_engine, lambda **counts: None)
        reference = transformers_model(model)
        texts = Dataset.open(prompts, "prompts").read_all(["prompt_ids"])["prompt_ids"].to_pylist()
        for row in Dataset.open(job.out, "rollouts").read_all().to_pylist():
            assert max(row["response_ids"]) < VOCAB
            expected = logprobs_of(reference, texts[row["prompt_index"]], row["response_ids"], VOCAB)
            assert np.abs(np.float32(row["logprobs"]) - expected).max() < 1e-4


def test_without_the_mask_padding_would_be_sampled(prompts, make_job, padded, padded_engine):
    """That the checkpoints above are of the kind that goes wrong."""
    loud = transformers_model(padded[0])
    ids = torch.tensor([Dataset.open(prompts, "prompts").read(0)["prompt_ids"].to_pylist()[0]])
    assert int(loud(ids).logits[0, -1].argmax()) >= VOCAB
    assert not padded_engine.suits(make_job(Path("unused"), prompts, padded[0], vocabulary=127))


def test_logits_narrower_than_the_tokenizer(tmp_path, prompts, make_job, checkpoints):
    with pytest.raises(UserError, match="cover 128 ids but the tokenizer has 129"):
        Engine(make_job(tmp_path, prompts, checkpoints[0], vocabulary=129))
