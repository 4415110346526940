"""Divergences and token weights by name, one registered function a file.

A divergence is written with tensor methods alone, so its file needs no engine and MindSpore can compile it. A
parameter may follow the name: ``jsd:0.1``. Several names with ``+`` between them are summed, each under weights of
its own (a method may weigh the teacher's answers by the first and the student's by the second).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from npd_ascend.config.schema import Config, LossConfig
from npd_ascend.config.stages import QUANTITIES
from npd_ascend.errors import UserError

if TYPE_CHECKING:
    from npd_ascend.store.topk_codec import TopK

Norm = Literal["teacher", "raw", "both", "tail"]
DIVERGENCE = Callable[[Any, Any, Any], Any]
"""(teacher log-probs [R, K], student log-probs [R, K], parameter [R, 1]) -> [R], nats a token. Logarithms are taken by
``models.elementwise.log``, whose bits do not change from call to call."""
TOKEN_WEIGHT = Callable[["Tokens"], np.ndarray]
"""Tokens of one sample -> [T] float32, mean 1."""


@dataclass(frozen=True)
class Divergence:
    """A registered divergence.

    Attributes:
        name: as in ``train.loss.divergence``.
        function: per-token value from the log-probs of both models on one support.
        student_weighted: whether the student's probabilities weight the sum. Its gradient is biased, and the loss
            unbounded below, unless the student's measure on the support is normalised too (arXiv:2605.11182).
        parameter: value of the parameter when none is given.
    """

    name: str
    function: DIVERGENCE
    student_weighted: bool
    parameter: float


@dataclass(frozen=True)
class Tokens:
    """What a token weight may look at: the response tokens of one sample.

    Attributes:
        count: T.
        teacher: annotation of these tokens; None when the teacher was not asked.
        logprobs: [T] float32 under the generator's snapshot; None for reference answers.
    """

    count: int
    teacher: TopK | None
    logprobs: np.ndarray | None


@dataclass(frozen=True)
class TokenWeight:
    """A registered token weight.

    Attributes:
        function: weighs the tokens of a sample.
        needs: what it cannot do without: ``topk`` (``Tokens.teacher``), ``logprobs``.
    """

    function: TOKEN_WEIGHT
    needs: frozenset[str]


_DIVERGENCES: dict[str, Divergence] = {}
_WEIGHTS: dict[str, TokenWeight] = {}
_T = TypeVar("_T")


def divergence(name: str, *, student_weighted: bool, parameter: float = 0.0) -> Callable[[DIVERGENCE], DIVERGENCE]:
    """Decorator that enters a divergence under the name used in ``train.loss.divergence``."""

    def enter(function: DIVERGENCE) -> DIVERGENCE:
        _DIVERGENCES[name] = Divergence(name, function, student_weighted, parameter)
        return function

    return enter


def token_weight(name: str, needs: Collection[str] = ()) -> Callable[[TOKEN_WEIGHT], TOKEN_WEIGHT]:
    """Decorator that enters a token weight under the name used in ``train.loss.token_weight``; see ``TokenWeight``."""

    def enter(function: TOKEN_WEIGHT) -> TOKEN_WEIGHT:
        _WEIGHTS[name] = TokenWeight(function, frozenset(needs))
        return function

    return enter


def divergences() -> dict[str, Divergence]:
    """All divergences by name."""
    from npd_ascend.objectives import divergences as folder

    _import_all(folder)
    return dict(sorted(_DIVERGENCES.items()))


def token_weights() -> dict[str, TokenWeight]:
    """All token weights by name."""
    from npd_ascend.objectives import token_weights as folder

    _import_all(folder)
    return dict(sorted(_WEIGHTS.items()))


def find_divergences(loss: LossConfig) -> list[tuple[Divergence, float]]:
    """The configured divergences, each with its parameter.

    Raises:
        UserError: unknown name, a bad parameter, or a normalisation under which a gradient would be biased.
    """
    return [_divergence(part.strip(), loss) for part in loss.divergence.split("+")]


def _divergence(text: str, loss: LossConfig) -> tuple[Divergence, float]:
    name, _, value = text.partition(":")
    found = _find(divergences(), name, "train.loss.divergence", "divergence")
    parameter = found.parameter
    if value:
        try:
            parameter = float(value)
        except ValueError:
            parameter = float("nan")
        if not 0.0 < parameter < 1.0:
            raise UserError(f"train.loss.divergence {text!r}: its parameter must lie between 0 and 1")
    if found.student_weighted and loss.topk_norm not in ("both", "tail"):
        raise UserError(
            f"train.loss.divergence {name} weights by the student, which is biased on a truncated support "
            f"(topk_norm: {loss.topk_norm}); set train.loss.topk_norm to tail or both"
        )
    return found, parameter


def find_token_weight(loss: LossConfig) -> TokenWeight:
    """The configured token weight.

    Raises:
        UserError: unknown name; the message names the nearest.
    """
    return _find(token_weights(), loss.token_weight, "train.loss.token_weight", "token weight")


def needed(config: Config) -> frozenset[str]:
    """Stored quantities that the configured loss looks at: its divergences, and its token weight."""
    loss = config.train.loss
    own = find_token_weight(loss).needs & QUANTITIES.keys()
    return own | {"topk"} if loss.kd_weight > 0 else own


def mean_one(weights: np.ndarray) -> np.ndarray:
    """Non-negative weights [T] scaled to mean 1 (all ones when they are all zero), float32."""
    mean = float(weights.mean()) if len(weights) else 0.0
    return (weights / mean if mean > 0 else np.ones_like(weights)).astype(np.float32)


def _import_all(folder: ModuleType) -> None:
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")


def _find(known: dict[str, _T], name: str, key: str, what: str) -> _T:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{key}: there is no {what} {name!r}; {hint}known: {', '.join(known)}")
    return known[name]
