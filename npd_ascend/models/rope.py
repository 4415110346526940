"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and the ways in which checkpoints stretch them.

The one place where their frequencies are computed, in plain Python and float64. The network's tables, the plain forward
pass that reloads are verified with take them from here. A type of scaling is one class and its name in
``SCALINGS``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from npd_ascend.errors import UserError
from npd_ascend.models.hf_config import Reader


class Scaling(ABC):
    """How frequencies are changed for positions beyond those of pre-training.

    Attributes:
        KEYS: what ``rope_scaling`` may hold beside its type.
        attention_factor: cosines and sines are multiplied by it.
    """

    KEYS: ClassVar[tuple[str, ...]]
    attention_factor: float = 1.0

    @classmethod
    @abstractmethod
    def read(cls, get: Reader, max_positions: int) -> Scaling:
        """From ``rope_scaling``; ``max_positions`` is the model's ``max_position_embeddings``."""

    @abstractmethod
    def stretch(self, plain: Sequence[float], theta: float) -> tuple[float, ...]:
        """Inverse frequencies [D / 2] from those without scaling."""


@dataclass(frozen=True)
class Linear(Scaling):
    """All positions divided by ``factor`` (position interpolation, arXiv:2306.15595)."""

    KEYS: ClassVar = ("factor",)
    factor: float

    @classmethod
    def read(cls, get: Reader, max_positions: int) -> Linear:
        factor = _factor(get)
        if isinstance(get.config["factor"], int):
            raise UserError(
                f"{get.where}: factor is the whole number {factor:g}, over which vLLM stops; write {factor:.1f}"
            )
        return cls(factor)

    def stretch(self, plain: Sequence[float], theta: float) -> tuple[float, ...]:
        return tuple(f / self.factor for f in plain)


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1's: wavelengths of over ``original / low`` positions are stretched, those under ``original / high``
    kept, and what lies between is interpolated (transformers' ``_compute_llama3_parameters``)."""

    KEYS: ClassVar = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor: float
    low: float
    high: float
    original: int

    @classmethod
    def read(cls, get: Reader, max_positions: int) -> Llama3:
        low, high = get.positive("low_freq_factor"), get.positive("high_freq_factor")
        if high <= low:
            raise UserError(f"{get.where}: high_freq_factor {high} is not above low_freq_factor {low}")
        return cls(_factor(get), low, high, get.count("original_max_position_embeddings"))

    def stretch(self, plain: Sequence[float], theta: float) -> tuple[float, ...]:
        return tuple(f / self.factor * (1 - keep) + f * keep for f in plain for keep in (self._kept(f),))

    def _kept(self, frequency: float) -> float:
        """Share of a frequency that is not stretched, 0 to 1."""
        turns = self.original * frequency / (2 * math.pi)
        return min(1.0, max(0.0, (turns - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Yarn(Scaling):
    """YaRN (arXiv:2309.00071): dimensions that turn more than ``beta_fast`` times in the original context keep their
    frequency, those that turn less than ``beta_slow`` times are stretched, with a ramp over the dimensions between
    (section 3.2; ``attention_factor``: section 3.4; as transformers' ``_compute_yarn_parameters``)."""

    KEYS: ClassVar = (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    )
    factor: float
    original: int
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @classmethod
    def read(cls, get: Reader, max_positions: int) -> Yarn:
        factor, original = _factor(get), get.count("original_max_position_embeddings", max_positions)
        if original * factor < max_positions:
            raise UserError(
                f"{get.where}: yarn stretches {original} positions by {factor:g}, which does not reach "
                f"max_position_embeddings {max_positions}; vLLM has no angles for the rest. Lower "
                "max_position_embeddings"
            )
        return cls(
            factor,
            original,
            _attention_factor(get, factor),
            get.positive("beta_fast", 32.0),
            get.positive("beta_slow", 1.0),
            get.flag("truncate", True),
        )

    def stretch(self, plain: Sequence[float], theta: float) -> tuple[float, ...]:
        pairs = len(plain)
        low, high = (self._dimension(turns, 2 * pairs, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        if low == high:
            high += 0.001
        ramps = (min(1.0, max(0.0, (i - low) / (high - low))) for i in range(pairs))
        return tuple(f / self.factor * ramp + f * (1 - ramp) for f, ramp in zip(plain, ramps, strict=True))

    def _dimension(self, turns: float, dim: int, theta: float) -> float:
        """The pair of dimensions that turns so often in the original context, as a fraction."""
        return dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


SCALINGS: dict[str, type[Scaling]] = {"linear": Linear, "llama3": Llama3, "yarn": Yarn}


@dataclass(frozen=True)
class Rope:
    """Angles of rotary embeddings: position times inverse frequency, the halves of a head being the two coordinates.

    Attributes:
        theta: base of the frequencies.
        scaling: how they are stretched; None: not at all.
    """

    theta: float
    scaling: Scaling | None = None

    def inverse_frequencies(self, head_dim: int) -> tuple[float, ...]:
        """[D / 2], radians a position."""
        plain = tuple(self.theta ** (-i / head_dim) for i in range(0, head_dim, 2))
        return plain if self.scaling is None else self.scaling.stretch(plain, self.theta)

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor


def read_rope(config: Reader, max_positions: int) -> Rope:
    """From ``config.json``, in the layout of transformers 4 (``rope_theta``, ``rope_scaling``), of 5
    (``rope_parameters``), or in both.

    Args:
        config: the whole object.
        max_positions: its ``max_position_embeddings``.

    Raises:
        UserError: a type or form that is not supported, a wrong value, or two layouts that do not agree.
    """
    where = config.where
    given = {key: _object(config, key) for key in ("rope_scaling", "rope_parameters")}
    given = {key: value for key, value in given.items() if value}
    forms = [_form(value) for value in given.values()]
    if len(forms) == 2 and forms[0] != forms[1]:
        raise UserError(
            f"{where}: rope_scaling and rope_parameters describe two different models; remove the wrong one"
        )
    key, form = (next(iter(given)), forms[0]) if forms else ("rope_scaling", {"rope_type": "default"})
    partial = [
        c["partial_rotary_factor"] for c in (config.config, form) if c.get("partial_rotary_factor") not in (None, 1)
    ]
    if config.config.get("rope_interleaved") or partial:
        raise UserError(f"{where}: interleaved or partial rotary embeddings are not supported")
    return Rope(_theta(config, given), _scaling(Reader(form, f"{where}: {key}"), max_positions))


def _object(config: Reader, key: str) -> dict[str, Any]:
    value = config.config.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{config.where}: {key} is {value!r}, expected an object")
    if any(isinstance(v, dict) for v in (value or {}).values()):
        raise UserError(f"{config.where}: {key} differs by kind of layer, which is not supported")
    return value or {}


def _form(value: dict[str, Any]) -> dict[str, Any]:
    """Without the base and what is null, the type under its newer name."""
    kind = value.get("rope_type", value.get("type", "default"))
    return {k: v for k, v in value.items() if k not in ("rope_theta", "type") and v is not None} | {"rope_type": kind}


def _theta(config: Reader, given: dict[str, dict[str, Any]]) -> float:
    bases = [
        b for b in (config.config.get("rope_theta"), *(v.get("rope_theta") for v in given.values())) if b is not None
    ]
    if any(b != bases[0] for b in bases):
        raise UserError(
            f"{config.where}: rope_theta is {bases[0]!r}, but {bases[-1]!r} in {' and '.join(given)}, so "
            "transformers 4 and 5 would run two different models; remove the wrong one"
        )
    theta = Reader({"rope_theta": bases[0] if bases else None}, config.where).positive("rope_theta", 10000.0)
    if theta <= 1:
        raise UserError(f"{config.where}: rope_theta is {theta}, expected a number above 1")
    return theta


def _scaling(get: Reader, max_positions: int) -> Scaling | None:
    kind = get.config["rope_type"]
    if not isinstance(kind, str) or kind not in ("default", *SCALINGS):
        raise UserError(
            f"{get.where}: rope type {kind!r} is not supported; supported are default, {', '.join(SCALINGS)}"
        )
    scaling = SCALINGS.get(kind)
    unknown = sorted(set(get.config) - {"rope_type", "partial_rotary_factor", *(scaling.KEYS if scaling else ())})
    if unknown:
        raise UserError(
            f"{get.where}: rope type {kind!r} has no {unknown[0]!r}; vLLM and transformers may read it "
            "differently. Remove it, or check the type"
        )
    return scaling.read(get, max_positions) if scaling else None


def _factor(get: Reader) -> float:
    factor = get.positive("factor")
    if factor < 1:
        raise UserError(f"{get.where}: factor is {factor}, expected at least 1")
    return factor


def _attention_factor(get: Reader, factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0  # 1 for a factor of 1

    if get.config.get("attention_factor") is not None:
        return get.positive("attention_factor")
    if get.config.get("mscale") and get.config.get("mscale_all_dim"):
        return scale(get.positive("mscale")) / scale(get.positive("mscale_all_dim"))
    return scale(1.0)
