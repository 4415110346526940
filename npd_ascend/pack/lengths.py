"""Token counts of the kept samples, fitted to a row's length with everything that is cut counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset


@dataclass(frozen=True)
class Samples:
    """Kept samples as they go into rows.

    Attributes:
        ordinals: [N] int64, row numbers in the generation's rollouts, ascending.
        prompt: [N] int64, prompt tokens.
        response: [N] int64, response tokens in the row, at least 1.
    """

    ordinals: Array
    prompt: Array
    response: Array

    @property
    def total(self) -> Array:
        """[N] tokens that a sample takes in a row."""
        total: Array = self.prompt + self.response
        return total


@dataclass(frozen=True)
class Losses:
    """What did not go in: whole samples (with their prompts), and ends of responses."""

    dropped_samples: int = 0
    dropped_tokens: int = 0
    truncated_samples: int = 0
    truncated_tokens: int = 0


def read_samples(prompts: Dataset, rollouts: Dataset, selection: Dataset) -> Samples:
    """Lengths of all samples that the selection keeps.

    Raises:
        UserError: selection and rollouts differ in shards, rows or sample ids, or a prompt is not there.
        CorruptShard: a shard's checksum differs.
    """
    if selection.shards != rollouts.shards:
        raise UserError(
            f"{selection.folder}: {selection.shards} shards for {rollouts.shards} of {rollouts.folder}; "
            f"remove that folder and run again"
        )
    prompt_tokens = _prompt_tokens(prompts)
    ordinals, prompt, response, first = [], [], [], 0
    pairs = zip(
        rollouts.iter_tables(["sample_id", "prompt_index", "tokens"]),
        selection.iter_tables(["sample_id", "keep"]),
        strict=True,
    )
    for shard, (rolled, chosen) in enumerate(pairs):
        if rolled["sample_id"] != chosen["sample_id"]:
            raise UserError(
                f"{selection.folder}: shard {shard} is not of the samples in {rollouts.folder}; "
                f"remove that folder and run again"
            )
        keep = np.flatnonzero(chosen["keep"].to_numpy())
        index = rolled["prompt_index"].to_numpy()[keep]
        if len(index) and (index.min() < 0 or index.max() >= len(prompt_tokens) or (prompt_tokens[index] < 0).any()):
            raise UserError(
                f"{rollouts.folder}: shard {shard} answers a prompt that is not in {prompts.folder}; "
                f"remove that folder and run again"
            )
        ordinals.append(first + keep)
        prompt.append(prompt_tokens[index])
        response.append(rolled["tokens"].to_numpy().astype(np.int64)[keep])
        first += rolled.num_rows
    return Samples(*(np.concatenate([np.empty(0, np.int64), *part]) for part in (ordinals, prompt, response)))


def fit(samples: Samples, row_length: int, too_long: str) -> tuple[Samples, Losses]:
    """Makes every sample fit into a row.

    ``truncate`` cuts the end of the response; a prompt that leaves no room for one response token cannot be cut
    in a useful way and its sample is dropped. ``drop`` drops samples that are too long, ``refuse`` is an error.
    A sample without response tokens has nothing to train on and is dropped as well.

    Raises:
        UserError: ``refuse`` and a sample is too long, or nothing is left.
    """
    over = samples.total > row_length
    if too_long == "refuse" and over.any():
        worst = int(samples.total.argmax())
        raise UserError(
            f"pack: {int(over.sum())} of {len(over)} samples are longer than pack.row_length {row_length} (the longest "
            f"has {int(samples.total[worst])} tokens, sample {int(samples.ordinals[worst])} of the rollouts); raise "
            f"pack.row_length, or set pack.too_long to truncate or drop"
        )
    response = np.minimum(samples.response, row_length - samples.prompt) if too_long == "truncate" else samples.response
    gone = (response < 1) | (samples.prompt + response > row_length)
    cut = samples.response - response
    losses = Losses(int(gone.sum()), int(samples.total[gone].sum()), int((cut[~gone] > 0).sum()), int(cut[~gone].sum()))
    if gone.all():
        raise UserError(f"pack: none of {len(over)} kept samples fits into pack.row_length {row_length}; raise it")
    return Samples(samples.ordinals[~gone], samples.prompt[~gone], response[~gone]), losses


def _prompt_tokens(prompts: Dataset) -> Array:
    """[max index + 1] int64 tokens by prompt index, -1 where there is no such prompt."""
    index, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for table in prompts.iter_tables(["prompt_index", "tokens"]):
        index.append(table["prompt_index"].to_numpy())
        tokens.append(table["tokens"].to_numpy().astype(np.int64))
    at = np.concatenate(index)
    out = np.full(int(at.max()) + 1 if len(at) else 0, -1, np.int64)
    out[at] = np.concatenate(tokens)
    return out
