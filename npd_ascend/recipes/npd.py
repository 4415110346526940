"""Near-Policy Distillation (arXiv:2605.05940, section 3): generation and training take turns, once a generation.

A frozen snapshot of the student answers all prompts, both models say what they think of the answers, the filter keeps
what the student can learn from, and the rest is packed and trained like supervised data. When the sync policy asks for
it, a new snapshot takes the place of the old one (the paper's sparse update).
"""

from __future__ import annotations

from itertools import count

from npd_ascend.config.schema import Config
from npd_ascend.recipes import Run, evaluate, needs, register, to_store


@register("npd")
def recipe(config: Config, run: Run) -> None:
    """A whole run; a generation is one turn of the loop."""
    run("prepare")
    if config.evaluate.prompts:
        run("prepare_eval")
    wanted = needs(config, "select", "train")

    for generation in count():
        if config.data.slice:
            run("draw", generation)
        run("rollout", generation)
        if generation == 0:
            evaluate(config, run, "start", generation)
        elif config.evaluate.at_refresh and generation % config.evaluate.every == 0:
            evaluate(config, run, f"refresh {generation}", generation)
        for model in ("teacher", "student"):
            if quantities := to_store(wanted, model):
                run(f"annotate_{model}", generation, quantities=quantities)
        run("select", generation)
        run("pack", generation)
        run("train", generation)
        if not run.refresh(generation):
            break

    run.export(generation)
    evaluate(config, run, "end", generation + 1)
