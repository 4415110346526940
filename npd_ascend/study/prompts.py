"""Prompts of an arm, held in memory, and the answers that are checked on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.job import Device
from npd_ascend.config.schema import Config
from npd_ascend.data.answers import Decoder
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.models.spec import ModelSpec
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.store.dataset import Dataset
from npd_ascend.tasks.registry import Attempt, Checker


@dataclass(frozen=True)
class Prompts:
    """A ``prompts`` dataset.

    Attributes:
        ids: int32 token ids of each prompt.
        references: of each reference answer with its end token; empty where there is none.
        masked: whether some of these have spans that are not trained on.
        texts, answers: for the checker.
        eos: ids that end an answer.
        vocabulary: ids of the tokenizer lie below this.
    """

    ids: list[Array]
    references: list[Array]
    texts: list[str]
    answers: list[str | None]
    eos: list[int]
    vocabulary: int
    masked: bool = False

    @classmethod
    def read(cls, dataset: Dataset) -> Prompts:
        """All shards."""
        table = dataset.read_all(["prompt_ids", "reference_ids", "text", "answer", "reference_masked"])
        ids, references = (
            [np.array(v or [], np.int32) for v in table[c].to_pylist()] for c in ("prompt_ids", "reference_ids")
        )
        return cls(
            ids,
            references,
            table["text"].to_pylist(),
            table["answer"].to_pylist(),
            list(dataset.extra["eos_token_ids"]),
            dataset.extra["tokenizer_size"],
            table["reference_masked"].null_count < len(table),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, n: int) -> Prompts:
        """The first ``n``."""
        return Prompts(
            self.ids[:n], self.references[:n], self.texts[:n], self.answers[:n], self.eos, self.vocabulary, self.masked
        )


class Judge:
    """Says which answers are right, as the evaluate stage does.

    Args:
        config: checker and tokenizer.
        eos: ids that end an answer.
    """

    def __init__(self, config: Config, eos: list[int]):
        self._checker = Checker.of(config)
        models = config.models
        self._decode = Decoder(load_tokenizer(models.tokenizer or models.student, models.trust_remote_code), eos)

    def __call__(self, prompts: Prompts, responses: Sequence[Array]) -> Array:
        """[N] bool."""
        return np.array(
            [
                self._checker(Attempt(text, self._decode(response.tolist()), answer, len(response)))
                for text, answer, response in zip(prompts.texts, prompts.answers, responses, strict=True)
            ]
        )


def live_job(config: Config, device: Device, model: ModelSpec, prompts: Sequence[Prompts]) -> RolloutJob:
    """What an engine must know to answer any of these prompts; its model is put in by the caller."""
    longest = max(len(p) for some in prompts for p in some.ids) + config.rollout.max_new_tokens
    eos = {*model.eos_token_ids, *(e for some in prompts for e in some.eos)}
    nowhere = config.run.dir / "live"
    return RolloutJob(
        out=nowhere,
        fingerprint="live",
        prompts=nowhere,
        model=config.models.student,
        generation=0,
        seed=config.run.seed,
        settings=config.rollout,
        device=device,
        max_model_len=min(longest, model.max_positions),
        eos_token_ids=sorted(eos),
        vocabulary=prompts[0].vocabulary,
    )
