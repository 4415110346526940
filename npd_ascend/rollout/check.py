"""Whether an engine answers with the weights that it was given.

Equal parameters do not prove it: an old packed copy of a matrix, or a captured graph with stale pointers, still answers
with the old weights. So the engine scores a fixed request by its ordinary prefill and decode steps, and its log-probs
are compared with a plain forward pass of the checkpoint's files (``forward.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError

_TOKENS, _DECODED = 16, 4
_FACTOR, _FRESH = 10.0, 30.0
"""How many times the scale of rounding an answer may be off; a fresh engine's, which has nothing of its own to be
compared with, by more: vLLM without AVX-512 was off by twelve times the rounding in torch."""
_FLOOR = {"float32": 1e-5, "bfloat16": 1e-3}
"""Nats; smaller differences always count as rounding."""
_OTHER = {"float32": "float64", "bfloat16": "bfloat16"}
"""The type whose difference from float32 shows what rounding does to a model in the engine's type."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        difference: largest difference of a log-prob from the plain forward pass, nats.
        limit: what rounding may explain.
        unmoved: whether the answers stayed where they were while those of the checkpoint's files changed.
    """

    difference: float
    limit: float
    unmoved: bool = False

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit and not self.unmoved

    def __str__(self) -> str:
        same = ", and those of the weights before" if self.unmoved else ""
        return f"log-probs {self.difference:.1e} off a plain forward pass (at most {self.limit:.1e}){same}"


class AnswerCheck:
    """The fixed request of one engine, and the difference that it showed right after the engine's start.

    The request is the same for every model of one shape: token ids spread over the vocabulary, then one token repeated,
    which the engine is forced to decode step by step (graphs are captured for decode steps first of all).
    A check costs one ``forward.token_logprobs`` of 16 tokens, and a second one where it measures rounding.

    Args:
        vocabulary: token ids below this count; logits from here on are padding.
        max_model_len: longest sequence of the engine; the request is shortened to it.
        dtype: ``float32`` or ``bfloat16``, type of the engine.

    Attributes:
        prompt: token ids of the request.
        forced: the token that follows it.
        decoded: how often.
    """

    def __init__(self, vocabulary: int, max_model_len: int, dtype: str):
        length = max(2, min(_TOKENS, max_model_len))
        self.decoded = min(_DECODED, length // 2)
        ids = [int(i * _GOLDEN % 1 * vocabulary) for i in range(1, length - self.decoded + 2)]
        self.prompt, self.forced = ids[:-1], ids[-1]
        self._dtype, self._vocabulary = dtype, vocabulary
        self._fresh: float | None = None
        self._before: tuple[Array, Array] | None = None

    def judge(self, model: Path, answered: Array) -> Verdict:
        """Compares log-probs with those of a checkpoint; the first call is for an engine that has just started.

        The limit is ten times (at the first call thirty times) the largest of three: the difference seen at that first
        call, the effect of rounding in the engine's type on these weights (measured only if the rest is exceeded), and
        a floor. In bfloat16 it is a few tenths of a nat or more, which a small update does not reach. So the answers
        are also compared with those given for the weights before: an engine that still uses those, in prefill or in
        decode steps, repeats its answers.

        Args:
            model: the checkpoint whose weights the engine should hold.
            answered: [len(prompt) - 1 + decoded], the engine's log-probs of all tokens of the request but the first.

        Raises:
            UserError: the checkpoint's own log-probs are not numbers.
        """
        import torch

        from npd_ascend.rollout.forward import token_logprobs

        ids, stored = self.prompt + [self.forced] * self.decoded, getattr(torch, self._dtype)
        expected = token_logprobs(model, ids, torch.float32, stored, self._vocabulary)
        if np.isnan(expected).any():
            raise UserError(f"{model}: the model's log-probs are NaN; check the checkpoint's weights")
        difference = _worst(answered, expected)
        scale = max(self._fresh or 0.0, _FLOOR[self._dtype])
        factor = _FRESH if self._fresh is None else _FACTOR
        if difference > factor * scale:
            rounded = token_logprobs(model, ids, getattr(torch, _OTHER[self._dtype]), stored, self._vocabulary)
            scale = max(scale, _worst(rounded, expected))
        unmoved = self._before is not None and self._unmoved(answered - self._before[0], expected - self._before[1])
        if self._fresh is None:
            self._fresh = difference
        self._before = answered, expected
        return Verdict(difference, factor * scale, unmoved)

    def _unmoved(self, did: Array, should: Array) -> bool:
        """Whether the answers of prefill or of decode steps changed by far less than they should have."""
        split = len(should) - self.decoded + 1  # the first token after the prompt comes from prefill too
        return any(
            part.size and (most := np.abs(part).max()) > _FLOOR[self._dtype] and np.abs(own).max() < most / 3
            for own, part in ((did[:split], should[:split]), (did[split:], should[split:]))
        )


def _worst(a: Array, b: Array) -> float:
    worst = float(np.abs(a - b).max())
    return float("inf") if np.isnan(worst) else worst
