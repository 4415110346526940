"""A generation on disk, made with the store's writers: prompts, rollouts, selection, top-k, packs, and a student."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.config.schema import SyncConfig, TrainConfig
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.metrics import read_metrics
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk
from npd_ascend.train.job import TrainJob

VOCAB, K, ROW = 53, 4, 48
CONFIG = {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True,
          "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
          "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
          "torch_dtype": "float32", "tie_word_embeddings": False}  # fmt: skip


def lists(arrays, kind=np.int32):
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])])
    flat = np.concatenate(arrays).astype(kind) if len(arrays) else np.zeros(0, kind)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat))


class World:
    """One generation: ``n`` samples of known tokens, every ``drop``-th of them not kept."""

    def __init__(
        self, root, n=24, seed=0, drop=7, epochs=2, labels=False, max_response=14, masked=False, rewarded=False
    ):
        self.rewarded = rewarded
        self.root = root
        rng = self.rng = np.random.default_rng(seed)
        self.prompts = [rng.integers(3, VOCAB, rng.integers(2, 8)).astype(np.int32) for _ in range(n)]
        self.responses = [rng.integers(3, VOCAB, rng.integers(1, max_response)).astype(np.int32) for _ in range(n)]
        self.ids = rng.integers(1, 2**62, n)
        self.keep = np.arange(n) % drop != drop - 1
        self.weights = np.where(self.keep, rng.random(n) + 0.5, 0).astype(np.float32)
        self.advantages = rng.standard_normal(n).astype(np.float32)
        self.advantages[self.keep] -= self.advantages[self.keep].mean()
        self.advantages[~self.keep] = 0
        self.logprobs = [-rng.random(len(r)).astype(np.float32) * 3 for r in self.responses]
        self.labels = [(r + 1) % VOCAB for r in self.responses] if labels else None
        spans = (
            [
                sorted(rng.choice(len(r) + 1, min(2 * (i % 3), (len(r) + 1) // 2 * 2), replace=False).tolist())
                for i, r in enumerate(self.responses)
            ]
            if masked
            else [[] for _ in self.responses]
        )
        self.masked = [s or None for s in spans]
        self.written = [
            np.array([not any(a <= t < b for a, b in zip(s[::2], s[1::2], strict=True)) for t in range(len(r))])
            for s, r in zip(spans, self.responses, strict=True)
        ]
        self.topk = [self.annotate(len(r)) for r in self.responses]
        self.write(epochs)

    def annotate(self, tokens):
        z = self.rng.standard_normal((tokens, VOCAB)) * 2
        logz = np.log(np.exp(z).sum(-1))
        logp = z - logz[:, None]
        ids = np.argsort(-logp, -1)[:, :K]
        entropy = -(np.exp(logp) * logp).sum(-1)
        return TopK(
            ids.astype(np.int32),
            np.take_along_axis(logp, ids, -1).astype(np.float32),
            logz.astype(np.float32),
            logp[:, 0].astype(np.float32),
            entropy.astype(np.float32),
        )

    def write(self, epochs):
        n = len(self.prompts)
        null = pa.nulls(n, pa.list_(pa.int32()))
        prompts = Dataset(self.root / "prompts", "prompts", "p")
        prompts.write_table(
            0,
            pa.table(
                {
                    "prompt_index": np.arange(n),
                    "prompt_id": np.arange(n),
                    "prompt_ids": lists(self.prompts),
                    "reference_ids": null,
                    "label_ids": null,
                    "answer": pa.nulls(n, pa.string()),
                    "text": pa.nulls(n, pa.string()),
                }
            ),
        )
        prompts.finish(1)
        rollouts, selection, topk = (Dataset(self.root / k, k, k) for k in ("rollouts", "selection", "topk"))
        codec = TopKFormat(K, VOCAB, 16)
        for i, rows in enumerate(np.array_split(np.arange(n), 3)):
            m = len(rows)
            rollouts.write_table(
                i,
                pa.table(
                    {
                        "sample_id": self.ids[rows],
                        "prompt_index": rows,
                        "path": np.zeros(m, np.int8),
                        "response_ids": lists([self.responses[r] for r in rows]),
                        "logprobs": lists([self.logprobs[r] for r in rows], np.float32),
                        "label_ids": (
                            lists([self.labels[r] for r in rows]) if self.labels else pa.nulls(m, pa.list_(pa.int32()))
                        ),
                        "finish_reason": pa.array(["stop"] * m).dictionary_encode(),
                        "masked": pa.array([self.masked[r] for r in rows], pa.list_(pa.int32())),
                    }
                ),
            )
            nothing = np.zeros(m)
            selection.write_table(
                i,
                pa.table(
                    {
                        "sample_id": self.ids[rows],
                        "keep": self.keep[rows],
                        "reason": pa.array(["kept"] * m).dictionary_encode(),
                        "zone": pa.array(["proximal"] * m).dictionary_encode(),
                        "weight": self.weights[rows],
                        "metric": nothing,
                        "ifd_teacher": nothing,
                        "ifd_student": nothing,
                        "delta_ifd": nothing,
                        **({"reward": nothing, "advantage": self.advantages[rows]} if self.rewarded else {}),
                    }
                ),
            )
            write_topk(topk, i, codec, [self.topk[r] for r in rows])
        for d in (rollouts, selection, topk):
            d.finish(3)
        self.pack(epochs)

    def pack(self, epochs, name="packs", alone=False):
        """Rows filled first come, first served, in another order each epoch; or one sample a row."""
        packs = Dataset(self.root / name, "packs", name)
        for e in range(epochs):
            rows, free = [], 0
            for s in np.random.default_rng(e).permutation(np.flatnonzero(self.keep)):
                need = len(self.prompts[s]) + len(self.responses[s])
                if alone or need > free:
                    rows.append([])
                    free = ROW
                rows[-1].append(s)
                free -= need
            packs.write_table(
                e,
                pa.table(
                    {
                        "samples": pa.array(rows, pa.list_(pa.int64())),
                        "prompt_tokens": pa.array(
                            [[len(self.prompts[s]) for s in r] for r in rows], pa.list_(pa.int32())
                        ),
                        "response_tokens": pa.array(
                            [[len(self.responses[s]) for s in r] for r in rows], pa.list_(pa.int32())
                        ),
                    }
                ),
            )
        packs.finish(epochs)
        return packs

    def student(self, name="student", seed=0, **config):
        """A random checkpoint in Hugging Face layout."""
        from npd_ascend.models import tensorfile
        from npd_ascend.models.mapping import rules
        from npd_ascend.models.spec import ModelSpec

        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
        (folder / "tokenizer.json").write_text("{}")
        rng = np.random.default_rng(seed)
        found = {}
        for rule in rules(ModelSpec.from_folder(folder)):
            for tensor, shape in zip(rule.hf, rule.shapes, strict=True):
                base = 1.0 if "norm" in tensor else 0.0
                found[tensor] = (base + 0.15 * rng.standard_normal(shape)).astype(np.float32)
        tensorfile.write(
            folder / "model.safetensors", [(t, "F32", a.shape) for t, a in found.items()], found.__getitem__
        )
        return folder

    def job(self, run="run", *, kd=0.9, sync=None, packs="packs", **changes):
        loss = changes.pop("loss", {})
        settings = {
            "epochs": 2.0,
            "lr": 3e-3,
            "min_lr": 3e-4,
            "global_batch": 4,
            "micro_batch": 2,
            "vocab_chunk_rows": 32,
            **changes.pop("settings", {}),
        }
        student = changes.pop("student", None) or self.student()
        out = self.root / run
        given = dict(
            prompts=self.root / "prompts",
            rollouts=self.root / "rollouts",
            topk=self.root / "topk" if kd else None,
            selection=self.root / "selection",
            packs=self.root / packs,
            student=student,
            snapshot=student,
            checkpoints=out / "checkpoints",
            out=out / "train",
            metrics=out / "metrics.jsonl",
            fingerprint="f",
            generation=0,
            start_progress=0.0,
            end_progress=2.0,
            snapshot_progress=None,
            last=True,
            pad_token_id=0,
            vocabulary=VOCAB,
            seed=0,
            row_length=ROW,
            settings=TrainConfig(**settings, loss=loss if "terms" in loss else {"kd_weight": kd, **loss}),
            sync=SyncConfig(**{"lag_every": 3, "probe_samples": 6, **(sync or {})}),
        )
        return TrainJob(**{**given, **changes})


@pytest.fixture(scope="session")
def kept():
    """A bench that compiles once for all jobs of the same shape and loss; it begins each of them as a new one does."""
    pytest.importorskip("mindspore")
    from npd_ascend.train.hooks import TrainHooks

    class Kept(TrainHooks):
        def __init__(self):
            self.trainers, self.lags = {}, {}

        def trainer(self, job, spec, reader, mesh):
            apart = {"epochs", "lr", "min_lr", "warmup", "global_batch", "checkpoint_every", "keep_checkpoints"}
            key = (repr(spec), job.row_length, reader.chunk, job.settings.model_dump_json(exclude=apart))
            if key not in self.trainers:
                self.trainers[key] = super().trainer(job, spec, reader, mesh)
            self.trainers[key].reset()
            return self.trainers[key]

        def divergence(self, spec, mesh):
            return self.lags.setdefault(spec.vocabulary, super().divergence(spec, mesh))

    return Kept()


@pytest.fixture
def policy_terms(monkeypatch):
    """``policy_terms.py`` of the loss's tests may be imported, as a user's own module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "objectives")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def make_world(tmp_path):
    return lambda **kw: World(tmp_path, **kw)


@pytest.fixture
def rows_of():
    """(job, kind) -> rows of metrics."""
    return lambda job, kind: [r for r in read_metrics(job.metrics) if r["kind"] == kind]


@pytest.fixture
def tensors_of():
    """Folder -> {name: array} of its safetensors files."""
    from safetensors.numpy import load_file

    return lambda folder: {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}
