"""Answers on disk, as texts that a tokenizer of bytes can spell."""

import json

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from npd_ascend.config.schema import Part
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.reward.job import RewardJob
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.schemas import PROMPTS, ROLLOUTS


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory):
    """A folder with a tokenizer whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class Answers:
    """Two shards of prompts with some answers each."""

    def __init__(self, root, tokenizer_folder):
        self.root, self.folder = root, tokenizer_folder
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.end = self.tokenizer.eos_token_id

    def write(self, prompts, answers, cut=()):
        """``prompts``: (text, right answer); ``answers[i]``: texts; ``cut``: (prompt, path) that ran out of tokens."""
        asked, given = (Dataset(self.root / k, k, k) for k in ("prompts", "rollouts"))
        half = (len(prompts) + 1) // 2
        for shard, part in enumerate((range(half), range(half, len(prompts)))):
            empty = {"reference_ids": None, "label_ids": None, "prompt_ids": [1]}
            rows = [{"prompt_index": i, "prompt_id": i, "text": prompts[i][0], "answer": prompts[i][1], **empty}
                    for i in part]  # fmt: skip
            asked.write_table(shard, pa.Table.from_pylist(rows, schema=PROMPTS))
            rows = [{"sample_id": 100 * i + path, "prompt_index": i, "path": path,
                     "response_ids": self.ids(text) + ([] if (i, path) in cut else [self.end]),
                     "logprobs": None, "label_ids": None,
                     "finish_reason": "length" if (i, path) in cut else "stop"}
                    for i in part for path, text in enumerate(answers[i])]  # fmt: skip
            given.write_table(shard, pa.Table.from_pylist(rows, schema=ROLLOUTS))
        asked.finish(2)
        given.finish(2)

    def ids(self, text):
        return self.tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False)

    def job(self, fingerprint="f", workers=2, **parts):
        return RewardJob(
            out=self.root / "rewards",
            fingerprint=fingerprint,
            prompts=self.root / "prompts",
            rollouts=self.root / "rollouts",
            tokenizer=self.folder,
            eos_token_ids=[self.end],
            parts={name: Part.model_validate(p if isinstance(p, dict) else {"weight": p}) for name, p in parts.items()},
            workers=workers,
        )

    def result(self):
        found = Dataset.open(self.root / "rewards", "rewards")
        table = found.read_all()
        return found, table["value"].to_numpy(), np.array(table["parts"].to_pylist())


@pytest.fixture
def answers(tmp_path, bytes_tokenizer):
    return Answers(tmp_path, bytes_tokenizer)
