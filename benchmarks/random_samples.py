"""Samples of random tokens with given lengths: data for benchmarks of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from npd_ascend.store.topk_codec import TopK
from npd_ascend.train.corpus import EpochPlan

_NOTHING = np.empty(0, np.int32)
_WALKS = Path(__file__).parents[1] / "assets/mini/sft_student.jsonl"
FIRST = 5  # ids below are special tokens of the mini models


def mini_lengths(n: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] tokens of prompts, template included, and [n] of responses, end token included, of the mini task's walks."""
    walks = [len(json.loads(line)["response"].split()) + 1 for line in _WALKS.read_text().splitlines()]
    return np.full(n, 14), np.resize(np.array(walks), n)


def chat_lengths(n: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] each, like short questions to a chat model: prompts of 90 tokens on average, responses of 110."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(mean, mean / 4, n).round().astype(int).clip(mean // 3, 2 * mean) for mean in (90, 110))


class Samples:
    """In place of a corpus and a top-k reader: random prompts, answers and teacher distributions.

    Args:
        lengths: of ``mini_lengths`` or ``chat_lengths``.
        vocab: ids.
    """

    k = 10

    def __init__(self, lengths: tuple[np.ndarray, np.ndarray], vocab: int):
        rng = np.random.default_rng(0)
        self.prompt_sizes, self.sizes = lengths
        self.prompts, self.responses = (
            [rng.integers(FIRST, vocab, t).astype(np.int32) for t in sizes] for sizes in lengths
        )
        self.weights = np.ones(len(self.sizes), np.float32)
        self.notes = [self._note(rng, int(t), vocab) for t in self.sizes]

    def __len__(self) -> int:
        return len(self.sizes)

    def texts(self, samples: np.ndarray, prompt_tokens: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([np.concatenate((self.prompts[i], self.responses[i])) for i in samples] or [_NOTHING])

    def targets(self, samples: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([self.responses[i] for i in samples] or [_NOTHING])

    def written(self, samples: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
        """All tokens are trained on."""
        return np.ones(int(response_tokens.sum()), bool)

    def read_many(self, samples: np.ndarray, extras: bool = True) -> tuple[TopK, np.ndarray]:
        notes = [self.notes[i] for i in samples]
        names = ("ids", "logprobs", "logz", "sampled", "entropy")
        return TopK(*(np.concatenate([getattr(n, name) for n in notes]) for name in names)), self.sizes[samples]

    def plan(self, rows: list[np.ndarray]) -> EpochPlan:
        """Rows given as lists of samples."""
        order = np.concatenate(rows)
        first = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return EpochPlan(first, order, self.prompt_sizes[order], self.sizes[order])

    def _note(self, rng: np.random.Generator, tokens: int, vocab: int) -> TopK:
        start, stride = rng.integers(0, vocab, (tokens, 1)), rng.integers(1, vocab // self.k, (tokens, 1))
        ids = ((start + stride * np.arange(self.k)) % vocab).astype(np.int32)  # all different
        z = rng.standard_normal((tokens, self.k)).astype(np.float32) * 2
        z = z - np.log(np.exp(z).sum(1, keepdims=True)) - 0.1  # the tail has a tenth
        zero = np.zeros(tokens, np.float32)
        return TopK(ids, z, zero, zero, zero)
