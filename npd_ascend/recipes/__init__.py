"""What happens in a run, in order. A recipe is one function in one file, and knows neither engines nor the store.

Whoever carries a recipe out calls it with a ``Run`` of its own: the executor runs the stages, a dry run says what it
would do, ``--stage`` runs one of them, and a study runs them in a process that keeps its engines.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection
from typing import Any, Protocol

from npd_ascend.config.schema import Config
from npd_ascend.config.stages import QUANTITIES, STAGES
from npd_ascend.errors import UserError


class Run(Protocol):
    """What a recipe may ask for."""

    def __call__(self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
                 ) -> None:
        """Does a stage, unless what it makes stands already, made from these very inputs.

        Args:
            stage: name of ``config.stages.STAGES``.
            generation: which one.
            quantities: for annotation: what is to be stored, or stands already.
            evaluation: for evaluation: its name in the report.
        """

    def refresh(self, generation: int) -> bool:
        """Whether the sync policy asks for another generation after this one, whose training is under way; returns
        when its snapshot can answer."""

    def export(self, generation: int) -> None:
        """Puts the student of this generation's training into the run's ``export`` folder."""


Recipe = Callable[[Config, Run], None]


def find(name: str) -> Recipe:
    """The recipe of that name.

    Args:
        name: a file of this folder, or ``module:function``.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    known = [m.name for m in pkgutil.iter_modules(__path__)]
    if name in known:
        return importlib.import_module(f"{__name__}.{name}").recipe
    if ":" in name:
        return load(name, "run.recipe")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"run.recipe: there is no recipe {name!r}; {hint}known: {', '.join(known)}, or module:function")


def load(name: str, key: str) -> Any:
    """What ``module:function`` names; ``key`` is the setting that says so.

    Raises:
        UserError: no such module, or nothing of that name in it.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"{key} {name!r}: {e}; is its package installed, or its folder in PYTHONPATH?") from None


def needs(config: Config, *stages: str) -> frozenset[str]:
    """Stored quantities that some stages look at under a configuration (all stages, when none is named).

    Raises:
        UserError: an unknown filter or token weight.
    """
    rows = [STAGES[name] for name in stages or STAGES]
    return frozenset().union(*(load(row.needs, row.name)(config) for row in rows if row.needs))


def to_store(wanted: Collection[str], model: str) -> frozenset[str]:
    """What to store of a model when these quantities are wanted: its own, and what their passes give for nothing."""
    own = {name for name in wanted if QUANTITIES[name].model == model}
    return frozenset(own.union(*(QUANTITIES[name].free for name in own)))


def asks(config: Config, model: str) -> bool:
    """Whether a model has to annotate."""
    return bool(to_store(needs(config), model))
