"""Weights replaced in a living engine, judged by what it answers: each family, head tied and of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from npd_ascend.rollout.engine import Engine, set_environment  # noqa: E402

set_environment("cpu")  # read by torch when it is imported

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.rollout import live, stage  # noqa: E402
from npd_ascend.rollout.extension import ReloadExtension  # noqa: E402
from npd_ascend.rollout.pool import RolloutPool  # noqa: E402
from tests.rollout.families import FAMILIES, logprobs, write  # noqa: E402

ATOL = 1e-4
"""Of log-probs by vLLM and by transformers, both float32, nats."""
PROMPTS = [[5, 9, 130, 77, 12], [30, 31, 32], list(range(60, 90))]


class Told(list):
    """What ``hold`` tells: (how, verdict) each time."""

    def __call__(self, how, verdict):
        self.append((how, verdict))


def answers_of(job, engine: Engine) -> list[tuple[list[int], np.ndarray]]:
    """Greedy answers to the prompts, with log-probs."""
    command = live.ask(job, [np.array(p) for p in PROMPTS], [None] * len(PROMPTS))
    found = live.answer(command, engine) | {"load_seconds": 0.0, "started": False}
    return [(a.ids.tolist(), a.logprobs) for a in live.read(found).answers]


def assert_answers_of(model: torch.nn.Module, answers, vocabulary: int = 160) -> None:
    for prompt, (ids, found) in zip(PROMPTS, answers, strict=True):
        expected = logprobs(model, prompt + ids, vocabulary).numpy()[len(prompt) - 1 :]
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


@pytest.fixture
def close():
    """Engines to be closed at the end; vLLM expects one at a time in a process."""
    engines: list[Engine] = []
    yield engines.append
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        (f, t)
        for f in FAMILIES
        for t in (True, False)
        if f in ("PanguEmbedded", "llama", "qwen2") or t == (f in ("llama3", "yarn"))
    ],
)
def test_a_reloaded_engine_answers_as_transformers(tmp_path, make_job, close, family, tied):
    width, vocabulary = (160, 160) if tied else (200, 187)  # the latter with padding ids
    models = [write(tmp_path / str(i), family, tied, seed=i, vocab=width) for i in range(3)]
    jobs = [
        make_job(tmp_path, tmp_path, tmp_path / str(i), max_model_len=64, max_new_tokens=12, vocabulary=vocabulary)
        for i in range(3)
    ]
    told = Told()
    close(engine := stage.hold(jobs[0], None, told))
    assert_answers_of(models[0], answers_of(jobs[0], engine), vocabulary)
    for i in (1, 2, 0):
        assert stage.hold(jobs[i], engine, told) is engine
        assert_answers_of(models[i], answers_of(jobs[i], engine), vocabulary)
    assert [how for how, _ in told] == ["start"] + ["reload"] * 3
    assert all(verdict.passed and verdict.difference < ATOL for _, verdict in told)


@pytest.fixture
def tied(tmp_path, make_job):
    """Two tied models and their jobs."""
    models = [write(tmp_path / str(i), "llama", True, seed=i) for i in range(2)]
    return models, [
        make_job(tmp_path, tmp_path, tmp_path / str(i), max_model_len=64, max_new_tokens=12, vocabulary=160)
        for i in range(2)
    ]


def test_a_stale_head_is_found_and_the_engine_started_afresh(tied, close, monkeypatch):
    models, jobs = tied
    told = Told()
    close(engine := stage.hold(jobs[0], None, told))
    monkeypatch.setattr(ReloadExtension, "_npd_repack", lambda self: None)
    close(fresh := stage.hold(jobs[1], engine, told))
    assert fresh is not engine and engine.llm is None
    assert [how for how, _ in told] == ["start", "reload", "start"]
    assert told[0][1].passed and told[2][1].passed
    assert not told[1][1].passed and told[1][1].difference > 0.1
    assert_answers_of(models[1], answers_of(jobs[1], fresh))


def test_one_line_when_a_new_engine_is_stale_too(tied, close, monkeypatch):
    _, jobs = tied
    told = Told()
    close(engine := stage.hold(jobs[0], None, told))
    old = load_file(jobs[0].model / "model.safetensors")["model.embed_tokens.weight"]
    verify = Engine._verify

    def with_the_old_head(self: Engine, model: Path) -> None:
        def multiply(x, weight, bias):
            return torch.nn.functional.linear(x, old, bias)

        verify(self, model)
        self.eager = False  # as with captured graphs, which the CPU has not
        self.llm.apply_model(lambda model: setattr(model.lm_head, "cpu_linear", multiply))

    monkeypatch.setattr(Engine, "_verify", with_the_old_head)  # the last that a start and a reload do
    with pytest.raises(UserError, match="set rollout.enforce_eager: true") as e:
        stage.hold(jobs[1], engine, told)
    assert "vLLM does not answer with the weights of" in str(e.value) and str(jobs[1].model) in str(e.value)
    assert "\n" not in str(e.value) and [how for how, _ in told] == ["start", "reload"]


def test_live_reloads_are_checked_now_and_then(tied, close):
    _, jobs = tied
    told = Told()
    close(engine := stage.hold(jobs[0], None, told, 3))
    for i in range(1, 6):
        stage.hold(jobs[i % 2], engine, told, 3)
        assert stage.hold(jobs[i % 2], engine, told, 3) is engine  # nothing to load
    assert [verdict is not None for _, verdict in told] == [True, True, False, False, True, False]


@pytest.mark.slow
def test_a_worker_goes_on_with_a_fresh_engine(tied, tmp_path, capfd):
    """The whole way: a process that forgets to pack, its events, what is said, what is answered."""
    models, jobs = tied
    (tmp_path / "sitecustomize.py").write_text(
        "from npd_ascend.rollout.extension import ReloadExtension\nReloadExtension._npd_repack = lambda self: None\n"
    )
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with RolloutPool(Path(sys.executable), 1, tmp_path / "logs", env={"PYTHONPATH": path}) as pool:

        def ask(i):
            return pool.answer(jobs[i], [np.array(p) for p in PROMPTS], [None] * len(PROMPTS))

        first = ask(0)
        pid = pool._workers[0]._popen.pid
        second = ask(1)
        assert pool._workers[0]._popen.pid == pid and first.started and second.started
    for model, batch in zip(models, (first, second), strict=True):
        assert_answers_of(model, [(a.ids.tolist(), a.logprobs) for a in batch.answers])
    said = [line for line in capfd.readouterr().err.splitlines() if "rollout worker 0: weights reloaded" in line]
    assert len(said) == 1 and "does not answer with the new weights and is started afresh" in said[0]
