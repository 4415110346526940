"""What happens in a run, in order. A recipe is one function in one file, and knows neither engines nor the store.

Whoever carries a recipe out calls it with a ``Run`` of its own: the executor runs the stages, a dry run says what it
would do, ``--stage`` runs one of them, and a study runs them in a process that keeps its engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from npd_ascend.config.schema import Config
from npd_ascend.config.stages import QUANTITIES, STAGES
from npd_ascend.registry import Registry, load


class Run(Protocol):
    """What a recipe may ask for."""

    def __call__(
        self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
    ) -> None:
        """Does a stage, unless its output already exists, made from the same inputs.

        Args:
            stage: name of ``config.stages.STAGES``.
            generation: which one.
            quantities: for annotation: what is to be stored, or is stored already.
            evaluation: for evaluation: its name in the report.
        """

    def refresh(self, generation: int) -> bool:
        """Whether the sync policy asks for another generation after this one, whose training is under way; returns
        when its snapshot can answer."""

    def export(self, generation: int) -> None:
        """Puts the student of this generation's training into the run's ``export`` folder."""


Recipe = Callable[[Config, Run], None]


RECIPES: Registry[Recipe] = Registry("recipe", "run.recipe", "npd_ascend.recipes", wrap=lambda function: function)


def register(name: str) -> Callable[[Recipe], Recipe]:
    """Decorator that makes a function the recipe of its file."""
    return RECIPES.decorator(lambda function: function, name)


def find(name: str) -> Recipe:
    """The recipe of that name: a file of this folder, an entry point, or ``module:function``.

    Raises:
        UserError: there is none.
    """
    return RECIPES.find(name)


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


def prepare(config: Config, run: Run) -> None:
    """Tokenises the prompts, and the held-out ones if there are any."""
    run("prepare")
    if config.evaluate.prompts:
        run("prepare_eval")


def annotate(run: Run, wanted: Collection[str], generation: int) -> None:
    """Asks each model for the quantities that are wanted of it."""
    for model in ("teacher", "student"):
        if quantities := to_store(wanted, model):
            run(f"annotate_{model}", generation, quantities=quantities)


def evaluate_snapshot(config: Config, run: Run, generation: int) -> None:
    """Accuracy of the start, and of each refreshed snapshot that ``evaluate.at_refresh`` and ``every`` ask for."""
    if generation == 0:
        evaluate(config, run, "start", generation)
    elif config.evaluate.at_refresh and generation % config.evaluate.every == 0:
        evaluate(config, run, f"refresh {generation}", generation)


def evaluate(config: Config, run: Run, name: str, generation: int) -> None:
    """Accuracy of the snapshot that a generation begins with, on held-out prompts."""
    if config.evaluate.prompts:
        run("evaluate_rollout", generation, evaluation=name)
        run("evaluate", generation, evaluation=name)


def asks(config: Config, model: str) -> bool:
    """Whether a model has to annotate."""
    return bool(to_store(needs(config), model))
