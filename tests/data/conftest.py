"""Small tokenizers of several kinds, built in the test, and helpers around the prepare stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from zoo import tokenizers_of

from npd_ascend import progress
from npd_ascend.config.schema import DataConfig
from npd_ascend.data.job import PrepareJob
from npd_ascend.data.stage import run
from npd_ascend.store.dataset import Dataset

MINI = Path(__file__).resolve().parents[2] / "assets" / "mini"
CORPUS = ["The way from here to there is long.", "How many clips did she sell? 48 + 24 = 72.", "user assistant system"]


def save(tokenizer: Tokenizer, folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config})
    )
    return folder


@pytest.fixture(scope="session")
def mini_tokenizer() -> Path:
    return MINI / "tokenizer"


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE with a ChatML template: a line feed follows the end token, and there is no BOS."""
    return tokenizers_of.chatml(tmp_path_factory.mktemp("tokenizers") / "chatml", CORPUS)


@pytest.fixture(scope="session")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-like: a word mark at the start of a text, BOS added by the tokenizer, no template."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=200, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return save(
        tokenizer,
        tmp_path_factory.mktemp("tokenizers") / "metaspace",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (dicts, or raw text) as a JSONL file."""

    def write(*rows: Any, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def progress_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Texts of the messages that a stage has sent to whoever watches."""
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "_sink", events.append)
    return lambda: [e["text"] for e in events if e["event"] == "message"]


@pytest.fixture
def prepare(tmp_path: Path, mini_tokenizer: Path) -> Callable[..., Dataset]:
    """Runs the stage; keywords that are fields of the job go there, all others into the data section."""

    def go(*files: Path, out: str = "out", **given: Any) -> Dataset:
        fields = {k: given.pop(k) for k in list(given) if k in PrepareJob.model_fields}
        job = PrepareJob(
            **{
                "out": tmp_path / out,
                "fingerprint": "f",
                "files": list(files),
                "tokenizer": mini_tokenizer,
                "settings": DataConfig(prompts=list(files), **given),
                **fields,
            }
        )
        run(job)
        return Dataset.open(tmp_path / out, "prompts")

    return go
