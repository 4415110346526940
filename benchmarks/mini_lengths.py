"""Samples with the lengths of the mini task and random tokens: data for benchmarks of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from npd_ascend.store.topk_codec import TopK
from npd_ascend.train.corpus import EpochPlan

_NOTHING = np.empty(0, np.int32)
PROMPT = 14  # tokens of the chat template included
_WALKS = Path(__file__).parents[1] / "assets/mini/sft_student.jsonl"


def lengths(n: int) -> np.ndarray:
    """[n] response tokens, end token included, of the first walks of the mini task, over and over."""
    walks = [len(json.loads(line)["response"].split()) + 1 for line in _WALKS.read_text().splitlines()]
    return np.resize(np.array(walks), n)


class Samples:
    """In place of a corpus and a top-k reader: random prompts, answers and teacher distributions."""

    k = 10

    def __init__(self, n: int, vocab: int):
        rng = np.random.default_rng(0)
        self.sizes = lengths(n)
        self.prompts = rng.integers(5, vocab, (n, PROMPT)).astype(np.int32)
        self.responses = [rng.integers(5, vocab, t).astype(np.int32) for t in self.sizes]
        self.weights = np.ones(n, np.float32)
        self.notes = [self._note(rng, int(t), vocab) for t in self.sizes]

    def __len__(self) -> int:
        return len(self.sizes)

    def texts(self, samples: np.ndarray, prompt_tokens: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([np.concatenate((self.prompts[i], self.responses[i])) for i in samples] or [_NOTHING])

    def targets(self, samples: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([self.responses[i] for i in samples] or [_NOTHING])

    def read_many(self, samples: np.ndarray, extras: bool = True) -> tuple[TopK, np.ndarray]:
        notes = [self.notes[i] for i in samples]
        names = ("ids", "logprobs", "logz", "sampled", "entropy")
        return TopK(*(np.concatenate([getattr(n, name) for n in notes]) for name in names)), self.sizes[samples]

    def plan(self, rows: list[np.ndarray]) -> EpochPlan:
        """Rows given as lists of samples."""
        order = np.concatenate(rows)
        first = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return EpochPlan(first, order, np.full(len(order), PROMPT), self.sizes[order])

    def _note(self, rng: np.random.Generator, tokens: int, vocab: int) -> TopK:
        ids = np.argsort(rng.random((tokens, vocab)), 1)[:, : self.k].astype(np.int32)
        z = rng.standard_normal((tokens, self.k)).astype(np.float32) * 2
        z = z - np.log(np.exp(z).sum(1, keepdims=True)) - 0.1  # the tail has a tenth
        zero = np.zeros(tokens, np.float32)
        return TopK(ids, z, zero, zero, zero)
