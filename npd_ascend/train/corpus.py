"""The samples of one generation by ordinal, and the plan of rows over them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.rows.masks import written
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.ragged import Ragged, concat_ranges


class Corpus:
    """Prompts, responses, labels and weights by sample ordinal.

    Args:
        prompts, rollouts, selection: finished datasets of one generation.
        asked: what is read only where the loss or a token weight asks for it: ``rollout_logprobs`` and ``advantages``
            (column ``advantage`` of the selection, one a sample), names of ``LossInputs``.

    Raises:
        UserError: the datasets are not of the same samples, or what is asked for was not stored.
    """

    def __init__(self, prompts: Dataset, rollouts: Dataset, selection: Dataset, asked: Collection[str] = ()):
        self.prompts = Ragged.read(prompts, "prompt_ids")
        self.responses = Ragged.read(rollouts, "response_ids")
        self.labels = Ragged.read(rollouts, "label_ids")
        self._masked = Ragged.read(rollouts, "masked")
        self.rollout_logprobs = Ragged.read(rollouts, "logprobs") if "rollout_logprobs" in asked else None
        table = rollouts.read_all(["sample_id", "prompt_index"])
        self.sample_ids = table["sample_id"].to_numpy()
        self._prompt_of = table["prompt_index"].to_numpy()
        chosen = selection.read_all(["sample_id", "weight"])
        if not np.array_equal(chosen["sample_id"].to_numpy(), self.sample_ids):
            raise UserError(f"{selection.folder}: not of the samples in {rollouts.folder}; run select again")
        self.weights = chosen["weight"].to_numpy()
        self.advantages = _advantages(selection) if "advantages" in asked else None

    def __len__(self) -> int:
        return len(self.sample_ids)

    def texts(self, ordinals: Array, prompt_tokens: Array, response_tokens: Array) -> Array:
        """Prompt and response of each of n samples, cut to the given numbers of tokens, one behind the other; int32."""
        total = prompt_tokens.astype(np.int64) + response_tokens
        first = np.cumsum(total) - total
        out = np.empty(int(total.sum()), np.int32)
        out[concat_ranges(first, prompt_tokens)] = self.prompts.take(self._prompt_of[ordinals], prompt_tokens)
        out[concat_ranges(first + prompt_tokens, response_tokens)] = self.responses.take(ordinals, response_tokens)
        return out

    def targets(self, ordinals: Array, response_tokens: Array) -> Array:
        """CE targets of n samples, as many of each as given: labels where there are some, else the response."""
        out = self.responses.take(ordinals, response_tokens)
        labelled = self.labels.lengths_of(ordinals) > 0
        if labelled.any():
            out[np.repeat(labelled, response_tokens)] = self.labels.take(ordinals[labelled], response_tokens[labelled])
        return out

    def written(self, ordinals: Array, response_tokens: Array) -> Array:
        """[sum of tokens] bool of n samples: which of their first response tokens are trained on."""
        return written(self._masked, ordinals, response_tokens)

    def written_tokens(self, ordinals: Array, response_tokens: Array) -> Array:
        """[samples] int64: how many of their first response tokens are trained on."""
        ends = np.cumsum(response_tokens, dtype=np.int64)
        total = np.concatenate([[0], np.cumsum(self.written(ordinals, response_tokens), dtype=np.int64)])
        counts: Array = total[ends] - total[ends - response_tokens]
        return counts


def _advantages(selection: Dataset) -> Array:
    """[samples] float32, as they are stored."""
    found = selection.read_all(["advantage"])["advantage"]
    if found.null_count:
        raise UserError(
            f"{selection.folder}: holds no advantages, for which train.loss asks; only a recipe with "
            f"rewards stores them"
        )
    return found.to_numpy().astype(np.float32)


@dataclass(frozen=True)
class EpochPlan:
    """Which samples share a row, for one local epoch.

    Attributes:
        first: [R + 1] int64, row r holds the samples ``first[r]:first[r + 1]`` of the arrays below.
        samples: ordinals.
        prompt_tokens, response_tokens: tokens of each sample in its row.
    """

    first: Array
    samples: Array
    prompt_tokens: Array
    response_tokens: Array

    def __len__(self) -> int:
        return len(self.first) - 1

    @classmethod
    def read(cls, packs: Dataset, epoch: int) -> EpochPlan:
        """Shard ``epoch`` of a ``packs`` dataset."""
        table = packs.read(epoch)
        samples, prompt, response = (Ragged.of(table[c]) for c in ("samples", "prompt_tokens", "response_tokens"))
        return cls(samples.offsets, samples.values, prompt.values, response.values)

    def response_tokens_by_row(self) -> Array:
        """[R] int64."""
        total = np.concatenate([[0], np.cumsum(self.response_tokens, dtype=np.int64)])
        return total[self.first[1:]] - total[self.first[:-1]]
