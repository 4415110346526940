"""A live step with real networks: its loss against each method's formula in float64, packed against padded."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig, TrainConfig  # noqa: E402
from npd_ascend.config.study import LiveConfig  # noqa: E402
from npd_ascend.models.initial import initial_checkpoint  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.study.batches import Layout  # noqa: E402
from npd_ascend.study.clock import Clock  # noqa: E402
from npd_ascend.study.live import LiveLoop, best  # noqa: E402
from npd_ascend.study.method import Sample, live_method  # noqa: E402
from npd_ascend.study.prefill import Prefill  # noqa: E402
from npd_ascend.train.step import Trainer  # noqa: E402

pytestmark = pytest.mark.mindspore
VOCAB, ROW = 41, 48
CONFIG = {"model_type": "PanguEmbedded", "bias": True, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
          "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
          "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
          "pad_token_id": 0, "torch_dtype": "float32", "tie_word_embeddings": False}  # fmt: skip


class Source:
    """Random answers of each origin."""

    def __init__(self, trainer, n=6, seed=0):
        self.rng, self.trainer = np.random.default_rng(seed), trainer
        self.epoch, self.progress, self.step, self.job = 0, 0.0, 1, None
        self.prompts = [self.rng.integers(3, VOCAB, self.rng.integers(2, 6)).astype(np.int32) for _ in range(n)]

    def _answers(self, prompts, origin):
        out = []
        for i in prompts:
            response = self.rng.integers(3, VOCAB, self.rng.integers(1, 9)).astype(np.int32)
            logprobs = -self.rng.random(len(response)).astype(np.float32) if origin == "student" else None
            out.append(Sample(i, self.prompts[i], response, origin, logprobs))
        return out

    def student(self, prompts):
        return self._answers(prompts, "student")

    def reference(self, prompts):
        return self._answers(prompts, "reference")

    def teacher(self, prompts):
        return self._answers(prompts, "teacher")

    def everything(self):
        return range(len(self.prompts))

    def held_out_loss(self):
        return 1.0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return network(tmp_path_factory.mktemp("teacher"), 1)


def network(folder, seed):
    spec = initial_checkpoint(folder / "hf", CONFIG, seed=seed, std=0.25, bias_std=0.3)
    net = build(spec, Device(), ROW)
    load_hf(net, folder / "hf")
    return net


class Settings:
    """The sections of a configuration that the loop looks at."""

    def __init__(self, train):
        self.train, self.annotate = train, AnnotateConfig(k=5)


def loop(kind, teacher, folder, **live):
    loss = {k.removeprefix("train.loss."): v for k, v in kind.changes.items() if k.startswith("train.loss.")}
    train = TrainConfig(epochs=1, lr=1e-3, loss=loss)
    method = kind(LiveConfig(prompts_per_step=3, **live), train)
    trainer = Trainer(network(folder, 0), train, 64, whole_vocabulary=method.whole_vocabulary)
    source = Source(trainer)
    layout = Layout.of(method.live, 3 * method.samples_per_prompt, ROW, 2, source.prompts, 14, 0)
    return LiveLoop(
        Settings(train), method, source, layout, Prefill(teacher), Prefill(trainer.net), Clock(), lambda *row: None
    )


def kl(a, b):
    return (np.exp(a) * (a - b)).sum(-1)


def mix(a, x, b, y):
    return np.logaddexp(np.log(a) + x, np.log(b) + y)


def naive(name, method, samples, teacher, student):
    """Loss of a step, Σ over tokens / tokens, from the log-probs [T, V] of each sample, in float64."""
    total = sum(len(s.response) for s in samples)
    ce = [-q[np.arange(len(s.response)), s.response] for s, q in zip(samples, student, strict=True)]
    if name == "on_policy":
        out = 0.0
        for c, p, q in zip(ce, teacher, student, strict=True):
            ids = np.argsort(-p, -1)[:, :5]
            p5, q5 = np.take_along_axis(p, ids, -1), np.take_along_axis(q, ids, -1)
            p5 = p5 - np.log(np.exp(p5).sum(-1, keepdims=True))
            out += 0.1 * c.sum() + 0.9 * kl(p5, q5).sum()
        return out / total
    if name == "gkd":
        both = [(p, q, mix(0.5, p, 0.5, q)) for p, q in zip(teacher, student, strict=True)]
        return sum((0.5 * kl(p, m) + 0.5 * kl(q, m)).sum() for p, q, m in both) / total
    if name == "distillm2":
        sums, counts = {"teacher": 0.0, "student": 0.0}, {"teacher": 0, "student": 0}
        gaps = {}
        for i, (s, p, q) in enumerate(zip(samples, teacher, student, strict=True)):
            at = np.arange(len(s.response)), s.response
            gap = np.exp(p[at].mean()) - np.exp(q[at].mean())
            gaps[i] = gap if s.origin == "teacher" else -gap
        for i, (s, p, q) in enumerate(zip(samples, teacher, student, strict=True)):
            first = np.mean([g for j, g in gaps.items() if samples[j].origin == s.origin])
            a = np.clip(1 - 0.9 * first / (gaps[i] + 1e-5), 0.01, 0.1)
            sums[s.origin] += (
                kl(p, mix(a, p, 1 - a, q)) if s.origin == "teacher" else kl(q, mix(1 - a, p, a, q))
            ).sum()
            counts[s.origin] += len(s.response)
        return 0.5 * sum(sums[o] / counts[o] for o in sums)
    own = [i for i, s in enumerate(samples) if s.origin == "student"]
    returns = []
    for i in own:
        s, p = samples[i], teacher[i]
        r = 0.5 * (p[np.arange(len(s.response)), s.response] - s.logprobs)
        n = len(r)
        returns.append([sum(0.95 ** (u - t - 1) * r[u] for u in range(t + 1, n)) / max(1, n - 1 - t) for t in range(n)])
    flat = np.concatenate(returns)
    gradient = sum(
        (c * (np.array(a) - flat.mean()) / flat.std()).sum() for c, a in zip([ce[i] for i in own], returns, strict=True)
    ) / len(flat)
    single = sum(kl(student[i], teacher[i]).sum() for i in own) / len(flat)
    data = np.concatenate([c for c, s in zip(ce, samples, strict=True) if s.origin == "reference"]).mean()
    return 0.5 * (gradient + single + data)


@pytest.mark.parametrize("name", ["on_policy", "gkd", "distillm2", "minillm"])
def test_step_is_the_formula(name, teacher, tmp_path):
    run = loop(live_method(name), teacher, tmp_path, student_fraction=1.0)
    samples = run.method.samples([0, 2, 5], run.source)
    (part,) = run.layout.parts(samples)
    cuts = np.cumsum([len(samples[i].response) for i in part.samples])[:-1]
    known, own = (np.split(net(part)[: part.tokens].astype(np.float64), cuts) for net in (run.teacher, run.student))
    in_order = [samples[i] for i in part.samples]
    row = run._train(samples, 1, 1e-4)
    assert row["tokens"] == part.tokens and row["grad_norm"] > 1e-3
    want = naive(name, run.method, in_order, known, own)
    assert row["loss"] == pytest.approx(want, rel=2e-4, abs=2e-5)


def test_packed_is_padded(teacher, tmp_path):
    rows = []
    for layout in ("padded", "packed"):
        run = loop(live_method("gkd"), teacher, tmp_path / layout, student_fraction=1.0, layout=layout)
        samples = run.method.samples([0, 1, 2, 3, 4], run.source)
        rows.append(run._train(samples, 1, 1e-4))
    for key in ("loss", "kd", "tokens", "grad_norm"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=2e-4)


def test_best():
    values = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    ids, found = best(values, 3)
    for row, i, v in zip(values, ids, found, strict=True):
        assert set(i) == set(np.argsort(-row)[:3])
        np.testing.assert_array_equal(row[i], v)
    ids, found = best(values, 9)
    assert (np.sort(ids) == np.arange(9)).all()
    np.testing.assert_array_equal(np.take_along_axis(values, ids, 1), found)


def test_everything_that_a_worker_needs_imports():
    from npd_ascend.study.run import run_arm

    assert callable(run_arm)
