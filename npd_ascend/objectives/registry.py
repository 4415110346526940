"""Terms of the loss and token weights by name, one registered function a file.

A term is a function whose argument names say what it reads (``READS``); nothing else is loaded for it. It is written
with tensor methods alone, so its file needs no engine and MindSpore can compile it. A parameter may follow the name in
a configuration: ``jsd:0.1``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import Config, LossConfig
from npd_ascend.config.stages import QUANTITIES
from npd_ascend.errors import UserError
from npd_ascend.objectives.inputs import STORED, ordered
from npd_ascend.registry import Registry
from npd_ascend.store.metrics import WATCHED

if TYPE_CHECKING:
    from npd_ascend.store.topk_codec import TopK

Norm = Literal["teacher", "raw", "both", "tail"]

READS: dict[str, tuple[str, ...]] = {
    "label_logprobs": (),
    "student_logprobs": ("teacher_ids", "teacher_logprobs"),
    "teacher_logprobs": ("teacher_ids", "teacher_logprobs"),
    "teacher_label_logprobs": ("teacher_labels",),
    "rollout_logprobs": ("rollout_logprobs",),
    "advantages": ("advantages",),
    "parameter": ("parameters",),
    "log": (),
    "fixed": (),
}
"""Arguments that a term may have, with the ``LossInputs`` behind each.

``label_logprobs`` [R]: the student's log-prob of the label, which for the student's own rollouts is the response token;
``student_logprobs``, ``teacher_logprobs`` [R, K]: both models on the stored support, made comparable by
``train.loss.topk_norm``; ``teacher_label_logprobs`` [R]: the teacher's log-prob of the label; ``rollout_logprobs``,
``advantages`` [R]; ``parameter`` [R, 1]; ``log``: the logarithm, whose bits do not change from call to call
(``models.elementwise.log``); ``fixed``: a value without its gradient. Gradients flow through the student's log-probs,
which are ``label_logprobs`` and ``student_logprobs``.
"""


@dataclass(frozen=True)
class Term:
    """A summand of the loss.

    Attributes:
        name: in ``train.loss.terms``, and in ``divergence`` if it reads the teacher.
        function: the arguments named in ``reads`` -> [R], nats a token.
        reads: names of ``READS``, in the order of the function's arguments.
        student_weighted: whether the student's probabilities weight a sum over the support. Its gradient is biased, and
            the loss unbounded below, unless the student's measure on the support is normalised too (arXiv:2605.11182).
        parameter: value of the parameter when none is given; None for a term that has none.
        constants: arguments behind those of ``READS``, with their defaults: numbers that are the same in all rows. A
            configuration gives them behind the name, ``ppo_clip:0.2:0.28``.
        watches: what is reported beside it: terms that read no more than ratios and advantages, and take its constants.
    """

    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]
    student_weighted: bool
    parameter: float | None
    constants: tuple[float, ...] = ()
    watches: tuple[Term, ...] = ()

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        name: str = "",
        *,
        student_weighted: bool = False,
        parameter: float = 0.5,
        watches: Collection[Callable[..., Any]] = (),
    ) -> Term:
        """A term from a function.

        Raises:
            UserError: it has an argument that no loss can give.
        """
        arguments = inspect.signature(function).parameters
        reads = tuple(a for a in arguments if a in READS)
        name = name or function.__name__
        given = {a: p.default for a, p in arguments.items() if a not in READS}
        if unknown := [a for a, default in given.items() if not isinstance(default, int | float)]:
            raise UserError(
                f"loss term {name}: there is no input {unknown[0]!r}; its arguments may be {', '.join(READS)}, and "
                "behind them numbers with a default"
            )
        watched = tuple(cls.of(watch) for watch in watches)
        number = parameter if "parameter" in reads else None
        return cls(name, function, reads, student_weighted, number, tuple(map(float, given.values())), watched)

    @property
    def is_divergence(self) -> bool:
        """Whether it compares the student with the teacher."""
        return "teacher_logprobs" in self.reads

    @property
    def needs_samples(self) -> bool:
        """Whether it weighs tokens by their probability when they were drawn, or takes them for draws."""
        return not {"rollout_logprobs", "advantages", "teacher_label_logprobs"}.isdisjoint(self.reads)


@dataclass(frozen=True)
class Summand:
    """A term as configured.

    Attributes:
        term: what is summed.
        scale: its weight in the loss; 0: only reported.
        parameter: of the term; 0 without one.
        constants: of the term.
        watched: whether it is there to be reported only, under its own name.
    """

    term: Term
    scale: float
    parameter: float
    constants: tuple[float, ...] = ()
    watched: bool = False

    @property
    def reported(self) -> str:
        """Its key in metrics; all divergences share one."""
        if self.watched:
            return f"{WATCHED}{self.term.name}"
        if self.term.name == CROSS_ENTROPY:
            return "ce"
        return "kd" if self.term.is_divergence else f"term_{self.term.name}"


@dataclass(frozen=True)
class Tokens:
    """What a token weight may look at: the response tokens of one sample.

    Attributes:
        count: T.
        teacher: annotation of these tokens; None when the teacher was not asked.
        rollout_logprobs: [T] float32 under the generator's snapshot; None for reference answers.
    """

    count: int
    teacher: TopK | None = None
    rollout_logprobs: Array | None = None


@dataclass(frozen=True)
class TokenWeight:
    """A registered token weight, which works in two phases.

    Attributes:
        name: in ``train.loss.token_weight``.
        weight: (sample, stats) -> [T] float32, mean 1.
        needs: what it cannot do without: ``topk`` (``Tokens.teacher``), ``rollout_logprobs``.
        stats: (all samples that a generation trains on, read one after the other) -> whatever ``weight`` gets as stats,
            say a quantile; the same on every rank and whatever the packing. None: it needs none, and nothing is read.
        uniform: all tokens weigh 1, so that nothing has to be computed.
    """

    name: str
    weight: Callable[[Tokens, Any], Array]
    needs: frozenset[str]
    stats: Callable[[Iterable[Tokens]], Any] | None = None
    uniform: bool = False


CROSS_ENTROPY = "cross_entropy"
TERMS: Registry[Term] = Registry(
    "loss term", "train.loss.terms", "npd_ascend.objectives.terms", wrap=Term.of, takes_argument=True
)
TOKEN_WEIGHTS: Registry[TokenWeight] = Registry(
    "token weight",
    "train.loss.token_weight",
    "npd_ascend.objectives.token_weights",
    wrap=lambda function: TokenWeight(function.__name__, function, frozenset()),
)


def term(
    name: str, *, student_weighted: bool = False, parameter: float = 0.5, watches: Collection[Callable[..., Any]] = ()
) -> Callable[[Any], Any]:
    """Decorator that enters a term of the loss; see ``Term``. ``parameter`` is for functions with such an argument."""
    return TERMS.decorator(
        lambda function: Term.of(
            function, name, student_weighted=student_weighted, parameter=parameter, watches=watches
        ),
        name,
    )


def token_weight(
    name: str,
    needs: Collection[str] = (),
    stats: Callable[[Iterable[Tokens]], Any] | None = None,
    uniform: bool = False,
) -> Callable[[Any], Any]:
    """Decorator that enters a token weight; see ``TokenWeight``."""
    return TOKEN_WEIGHTS.decorator(lambda weight: TokenWeight(name, weight, frozenset(needs), stats, uniform), name)


def summands(loss: LossConfig) -> list[Summand]:
    """The terms of the configured loss: cross-entropy first, then the others in their order.

    The default is paper eq. (1), (1 − λ) cross-entropy + λ (sum of the configured divergences). Cross-entropy is always
    among them, if only to be reported; another term of weight 0 is left out, and nothing is read for it. What the terms
    have watched follows, each name once, with weight 0.

    Raises:
        UserError: unknown name, a bad parameter, or a normalisation under which a gradient would be biased.
    """
    if loss.terms:
        found = [_summand(text, scale, loss, "train.loss.terms") for text, scale in loss.terms.items()]
    else:
        found = [
            _summand(part.strip(), loss.kd_weight, loss, "train.loss.divergence") for part in loss.divergence.split("+")
        ]
        if other := next((s.term for s in found if not s.term.is_divergence), None):
            raise UserError(
                f"train.loss.divergence: {other.name} does not look at the teacher; name it in train.loss.terms"
            )
        found.insert(
            0, Summand(TERMS.find(CROSS_ENTROPY), 0.0 if loss.ce_labels == "none" else 1.0 - loss.kd_weight, 0.0)
        )
    entropy = [s for s in found if s.term.name == CROSS_ENTROPY] or [Summand(TERMS.find(CROSS_ENTROPY), 0.0, 0.0)]
    used = entropy + [s for s in found if s.term.name != CROSS_ENTROPY and s.scale]
    watched = {w.name: Summand(w, 0.0, 0.0, _constants(w, s), watched=True) for s in used for w in s.term.watches}
    return used + list(watched.values())


def _summand(text: str, scale: float, loss: LossConfig, key: str) -> Summand:
    found, argument = TERMS.parse(text, key)
    value = found.parameter or 0.0
    if found.constants:
        return Summand(found, scale, value, _numbers(found, argument, f"{key} {text!r}"))
    if argument and found.parameter is None:
        raise UserError(f"{key} {text!r}: {found.name} takes no parameter; leave out ':{argument}'")
    if argument:
        try:
            value = float(argument)
        except ValueError:
            value = float("nan")
        if not 0.0 < value < 1.0:
            raise UserError(f"{key} {text!r}: its parameter must lie between 0 and 1")
    if found.student_weighted and loss.topk_norm not in ("both", "tail"):
        raise UserError(
            f"{key} {found.name} weights by the student, which is biased on a truncated support "
            f"(topk_norm: {loss.topk_norm}); set train.loss.topk_norm to tail or both"
        )
    return Summand(found, scale, value)


def _numbers(term: Term, argument: str, where: str) -> tuple[float, ...]:
    """The constants of a term, those that are not given as they are by default."""
    try:
        given = tuple(float(part) for part in argument.split(":")) if argument else ()
    except ValueError:
        given = (float("nan"),)
    names = [a for a in inspect.signature(term.function).parameters if a not in READS]
    if len(given) > len(names) or not all(0 <= x < float("inf") for x in given):
        raise UserError(f"{where}: {term.name} takes {' and '.join(names)}, numbers from 0 on with ':' between them")
    return given + term.constants[len(given) :]


def _constants(watch: Term, of: Summand) -> tuple[float, ...]:
    """What a watch takes of its term: as many constants as it has arguments for."""
    return of.constants[: len(watch.constants)]


def input_names(terms: Sequence[Summand]) -> tuple[str, ...]:
    """Names of the ``LossInputs`` that these terms read, in the order in which graphs take them."""
    asked = {name for s in terms for argument in s.term.reads for name in READS[argument]}
    return ordered({"labels", "weights", *asked})


def parameters(terms: Sequence[Summand]) -> Array:
    """[M] float32, the configured parameters."""
    return np.array([s.parameter for s in terms], np.float32)


def reported(terms: Sequence[Summand], sums: Sequence[float]) -> dict[str, float]:
    """Sums by their keys in metrics, from those of the loss and of each of M terms; ``ce`` and ``kd`` always there."""
    out = {"loss": float(sums[0]), "ce": 0.0, "kd": 0.0}
    for s, value in zip(terms, sums[1:], strict=True):
        out[s.reported] = out.get(s.reported, 0.0) + float(value)
    return out


def find_token_weight(loss: LossConfig) -> TokenWeight:
    """The configured token weight.

    Raises:
        UserError: unknown name; the message names the nearest.
    """
    return TOKEN_WEIGHTS.find(loss.token_weight)


def asked(loss: LossConfig) -> frozenset[str]:
    """All that terms and token weight read: names of ``LossInputs``, and of stored quantities."""
    return frozenset(input_names(summands(loss))) | find_token_weight(loss).needs


def needed(config: Config) -> frozenset[str]:
    """Stored quantities that the configured loss looks at: its terms, and its token weight."""
    return frozenset(STORED.get(name, name) for name in asked(config.train.loss)) & QUANTITIES.keys()


def mean_one(weights: Array) -> Array:
    """Non-negative weights [T] scaled to mean 1 (all ones when they are all zero), float32."""
    mean = float(weights.mean()) if len(weights) else 0.0
    return (weights / mean if mean > 0 else np.ones_like(weights)).astype(np.float32)
