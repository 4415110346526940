"""Probabilities of the present student over those under which a token was drawn, and what is watched of them.

With π the student's probability of the token and μ that of the engine whose snapshot wrote it, ρ = π / μ holds all
that lies between the two: how far training has moved since (the lag), and how differently engine and trainer compute
(the mismatch, which is what is left at the first step after a refresh). None of it takes a forward pass of its own.
"""

from __future__ import annotations

from typing import Any

_LOG_LIMIT = 20.0
"""Nats; beyond these exp would only overflow."""


def log_ratio(label_logprobs: Any, rollout_logprobs: Any) -> Any:
    """log ρ, within ±20."""
    return (label_logprobs - rollout_logprobs).clip(-_LOG_LIMIT, _LOG_LIMIT)


def ratio(label_logprobs: Any, rollout_logprobs: Any) -> Any:
    """ρ."""
    return log_ratio(label_logprobs, rollout_logprobs).exp()


def above(x: Any, bound: float) -> Any:
    """1 where x > bound, else 0."""
    return (x > bound).astype("float32")


def below(x: Any, bound: float) -> Any:
    """1 where x < bound, else 0."""
    return (x < bound).astype("float32")


def k3(label_logprobs: Any, rollout_logprobs: Any) -> Any:
    """ρ − 1 − log ρ: its mean over tokens drawn from μ is KL(μ ‖ π), and never negative (Schulman's k3)."""
    gap = log_ratio(label_logprobs, rollout_logprobs)
    return gap.exp() - gap - 1.0


def gap(label_logprobs: Any, rollout_logprobs: Any) -> Any:
    """|log ρ|."""
    return log_ratio(label_logprobs, rollout_logprobs).abs()


WATCHED = (k3, gap)
"""What every term with a ratio has watched."""
