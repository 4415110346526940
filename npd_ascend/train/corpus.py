"""The samples of one generation as flat token arrays, and the plan of rows over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset


@dataclass(frozen=True)
class Ragged:
    """Lists of unequal length, one behind the other.

    Attributes:
        values: [sum of lengths].
        offsets: [N + 1] int64.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.diff(self.offsets)

    @classmethod
    def read(cls, dataset: Dataset, column: str) -> Ragged:
        """A list column over all shards; null lists are empty."""
        return cls.of(dataset.read_all([column])[column])

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Ragged:
        """A list column."""
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        values = pc.list_flatten(column)
        return cls(values.to_numpy(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


class Corpus:
    """Prompts, responses, labels and weights by sample ordinal.

    Args:
        prompts, rollouts, selection: finished datasets of one generation.
        with_logprobs: also read the rollouts' log-probs (a token weight wants them).

    Raises:
        UserError: the datasets are not of the same samples.
    """

    def __init__(self, prompts: Dataset, rollouts: Dataset, selection: Dataset, with_logprobs: bool = False):
        self._prompts = Ragged.read(prompts, "prompt_ids")
        columns = ["sample_id", "prompt_index", "response_ids", "label_ids"] + ["logprobs"] * with_logprobs
        table = rollouts.read_all(columns)
        self.responses = Ragged.of(table["response_ids"])
        self.labels = Ragged.of(table["label_ids"])
        self.logprobs = Ragged.of(table["logprobs"]) if with_logprobs else None
        self.sample_ids = table["sample_id"].to_numpy()
        self._prompt_of = table["prompt_index"].to_numpy()
        chosen = selection.read_all(["sample_id", "weight"])
        if not np.array_equal(chosen["sample_id"].to_numpy(), self.sample_ids):
            raise UserError(f"{selection.folder}: not of the samples in {rollouts.folder}; run select again")
        self.weights = chosen["weight"].to_numpy()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def prompt(self, ordinal: int) -> np.ndarray:
        """Prompt tokens of a sample, int32."""
        return self._prompts[self._prompt_of[ordinal]]

    def label(self, ordinal: int) -> np.ndarray:
        """CE targets of a sample: its labels where it has some, else its own response."""
        labels = self.labels[ordinal]
        return labels if len(labels) else self.responses[ordinal]


@dataclass(frozen=True)
class EpochPlan:
    """Which samples share a row, for one local epoch.

    Attributes:
        first: [R + 1] int64, row r holds the samples ``first[r]:first[r + 1]`` of the arrays below.
        samples: ordinals.
        prompt_tokens, response_tokens: tokens of each sample in its row.
    """

    first: np.ndarray
    samples: np.ndarray
    prompt_tokens: np.ndarray
    response_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    @classmethod
    def read(cls, packs: Dataset, epoch: int) -> EpochPlan:
        """Shard ``epoch`` of a ``packs`` dataset."""
        table = packs.read(epoch)
        samples, prompt, response = (Ragged.of(table[c]) for c in ("samples", "prompt_tokens", "response_tokens"))
        return cls(samples.offsets, samples.values, prompt.values, response.values)

    def response_tokens_by_row(self) -> np.ndarray:
        """[R] int64."""
        total = np.concatenate([[0], np.cumsum(self.response_tokens, dtype=np.int64)])
        return total[self.first[1:]] - total[self.first[:-1]]
