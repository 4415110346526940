"""Near-Policy Distillation (arXiv:2605.05940, section 3): generation and training take turns, once a generation.

A frozen snapshot of the student answers all prompts, both models say what they think of the answers, the filter keeps
what the student can learn from, and the rest is packed and trained like supervised data. When the sync policy asks for
it, a new snapshot takes the place of the old one (the paper's sparse update).
"""

from __future__ import annotations

from itertools import count

from npd_ascend.config.schema import Config
from npd_ascend.recipes import Run, annotate, evaluate, evaluate_snapshot, needs, prepare, register


@register("npd")
def recipe(config: Config, run: Run) -> None:
    """A whole run; a generation is one turn of the loop."""
    prepare(config, run)
    wanted = needs(config, "select", "train")

    for generation in count():
        if config.data.slice:
            run("draw", generation)
        run("rollout", generation)
        evaluate_snapshot(config, run, generation)
        annotate(run, wanted, generation)
        run("select", generation)
        run("pack", generation)
        run("train", generation)
        if not run.refresh(generation):
            break

    run.export(generation)
    evaluate(config, run, "end", generation + 1)
