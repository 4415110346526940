"""Small sound inputs, each row of a test spoils one thing of: checkpoints, prompts, a configuration, a run's data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from npd_ascend.config.load import load_config
from npd_ascend.config.schema import Config, DataConfig, EvaluateConfig, PackConfig, SelectConfig
from npd_ascend.data.job import PrepareJob
from npd_ascend.evaluate.job import EvaluateJob
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.pack.job import PackJob
from npd_ascend.select.job import SelectJob
from npd_ascend.select.registry import IFD as SCORES
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "assets" / "mini" / "tokenizer"
SHAPE = {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True, "vocab_size": 320,
         "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "float32",
         "tie_word_embeddings": False}  # fmt: skip
K, SHARDS, PER = 3, 2, 4


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a teacher, a student and prompts; not to be changed."""
    folder = tmp_path_factory.mktemp("sound")
    for seed, name in enumerate(("teacher", "student")):
        initial_checkpoint(folder / name, SHAPE, seed=seed)
        for path in TOKENIZER.iterdir():
            shutil.copyfile(path, folder / name / path.name)
    rows = [{"prompt": f"a{i} b{i}", "response": f"b{i}", "answer": f"b{i}"} for i in range(SHARDS * PER)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


class Kit:
    """A private copy of all inputs below ``root``."""

    def __init__(self, root: Path, sound: Path):
        self.root = root
        shutil.copytree(sound, root, dirs_exist_ok=True)
        self.teacher, self.student, self.prompts = root / "teacher", root / "student", root / "prompts.jsonl"
        self.run, self.file = root / "run", root / "config.yaml"
        self.tree: dict[str, Any] = {
            "run": {"dir": str(self.run)},
            "models": {"teacher": str(self.teacher), "student": str(self.student)},
            "data": {"prompts": [str(self.prompts)], "answer_field": "answer"},
            "rollout": {"max_new_tokens": 8},
            "annotate": {"k": K, "row_length": 128},
            "pack": {"row_length": 128},
            "device": {"target": "cpu"},
        }

    def set(self, key: str, value: Any) -> None:
        """Changes one setting, ``a.b.c``."""
        node, parts = self.tree, key.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value

    def config(self) -> Config:
        """Writes and loads the configuration."""
        self.file.write_text(yaml.safe_dump(self.tree), encoding="utf-8")
        return load_config(self.file)

    def edit(self, path: Path, change: Callable[[Any], Any]) -> None:
        """Rewrites a JSON file with ``change`` of its content (in place when it returns None)."""
        value = json.loads(path.read_text())
        new = change(value)
        path.write_text(json.dumps(value if new is None else new))

    # ---- data of one generation, and jobs over it

    def data(self) -> None:
        """Prompts, rollouts, both scores, top-k and selection, ``SHARDS`` shards of ``PER`` samples each."""
        rng = np.random.default_rng(0)
        null = pa.nulls(PER, pa.list_(pa.int32()))
        sets = {
            name: Dataset(self.root / "d" / name, kind, name)
            for name, kind in (
                ("prompts", "prompts"),
                ("rollouts", "rollouts"),
                *((name, "scores") for name in SCORES),
                ("selection", "selection"),
                ("topk", "topk"),
            )
        }
        for s in range(SHARDS):
            index = np.arange(s * PER, (s + 1) * PER)
            ids = pa.array([rng.integers(3, 60, 5).tolist() for _ in index], pa.list_(pa.int32()))
            sets["prompts"].write_table(
                s,
                pa.table(
                    {
                        "prompt_index": index,
                        "prompt_id": index,
                        "prompt_ids": ids,
                        "reference_ids": null,
                        "label_ids": null,
                        "answer": [f"b{i}" for i in index],
                        "text": [f"a{i}" for i in index],
                    }
                ),
            )
            sets["rollouts"].write_table(
                s,
                pa.table(
                    {
                        "sample_id": 100 + index,
                        "prompt_index": index,
                        "path": np.zeros(PER, np.int8),
                        "response_ids": ids,
                        "logprobs": pa.array([[-1.0] * 5] * PER, pa.list_(pa.float32())),
                        "label_ids": null,
                        "finish_reason": ["stop"] * PER,
                    }
                ),
                tokens=5 * PER,
                truncated=0,
                greedy=PER,
                sampled=0,
                seconds=1.0,
            )
            for name in SCORES:
                nll = rng.uniform(0.5, 1, PER) + name.startswith("unconditioned")
                sets[name].write_table(
                    s,
                    pa.table(
                        {"sample_id": 100 + index, "tokens": np.full(PER, 5), "nll": nll, "entropy": np.ones(PER)}
                    ),
                )
            sets["selection"].write_table(
                s,
                pa.table(
                    {
                        "sample_id": 100 + index,
                        "keep": np.ones(PER, bool),
                        "reason": ["kept"] * PER,
                        "zone": ["proximal"] * PER,
                        "weight": np.ones(PER, np.float32),
                        "metric": np.zeros(PER),
                        "ifd_teacher": np.ones(PER),
                        "ifd_student": np.ones(PER),
                        "delta_ifd": np.zeros(PER),
                    }
                ),
            )
            write_topk(
                sets["topk"],
                s,
                TopKFormat(K, 320),
                [
                    TopK(
                        rng.integers(0, 320, (5, K)).astype(np.int32),
                        np.sort(-rng.random((5, K)))[:, ::-1],
                        np.ones(5),
                        -rng.random(5),
                        np.ones(5),
                    )
                    for _ in index
                ],
            )
        for name, d in sets.items():
            more = {"longest_prompt": 5, "eos_token_ids": [2], "header_ids": [1]} if name == "prompts" else {}
            d.finish(SHARDS, **({"truncated": 0} if name == "rollouts" else more))

    def at(self, name: str) -> Path:
        """Folder of one of the datasets, or of a stage's output."""
        return self.root / "d" / name

    def prepare_job(self, **data: Any) -> PrepareJob:
        settings = DataConfig(**{"prompts": [self.prompts], "answer_field": "answer", **data})
        return PrepareJob(
            out=self.at("prepared"),
            fingerprint="f",
            files=settings.prompts,
            tokenizer=self.student,
            settings=settings,
            shard_size=PER,
        )

    def select_job(self, **settings: Any) -> SelectJob:
        return SelectJob(
            out=self.at("selected"),
            fingerprint="f",
            rollouts=self.at("rollouts"),
            quantities={name: self.at(name) for name in SCORES},
            settings=SelectConfig(**{"lower": None, "upper": None, **settings}),
        )

    def pack_job(self, **settings: Any) -> PackJob:
        return PackJob(
            out=self.at("packed"),
            fingerprint="f",
            prompts=self.at("prompts"),
            rollouts=self.at("rollouts"),
            selection=self.at("selection"),
            epochs=2,
            first_epoch_seed=0,
            group=2,
            settings=PackConfig(**{"row_length": 32, **settings}),
        )

    def evaluate_job(self, **settings: Any) -> EvaluateJob:
        return EvaluateJob(
            out=self.at("result.json"),
            fingerprint="f",
            prompts=self.at("prompts"),
            rollouts=self.at("rollouts"),
            tokenizer=self.student,
            name="start",
            settings=EvaluateConfig(**settings),
            eos_token_ids=[2],
        )


@pytest.fixture(scope="session")
def make_kit(sound: Path) -> Callable[[Path], Kit]:
    """Makes a kit in a folder."""
    return lambda root: Kit(root, sound)


@pytest.fixture
def kit(tmp_path: Path, sound: Path) -> Kit:
    return Kit(tmp_path / "kit", sound)
