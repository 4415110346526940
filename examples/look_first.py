"""A recipe: answers the prompts and says what would be trained on, without training anything."""

from __future__ import annotations

from npd_ascend.config.schema import Config
from npd_ascend.recipes import Run, annotate, needs, register


@register("look_first")
def look_first(config: Config, run: Run) -> None:
    """The first generation up to the filter. ``npd run CONFIG --redo`` with ``run.recipe: npd`` goes on from there."""
    run("prepare")
    run("rollout", 0)
    annotate(run, needs(config, "select"), 0)
    run("select", 0)
