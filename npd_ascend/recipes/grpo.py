"""GRPO (arXiv:2402.03300) as a near-policy method: generations of NPD, with rewards in the teacher's place.

A frozen snapshot of the student answers a slice of the prompts, several times each. Every answer is judged, and
compared with the others to its prompt: that is its advantage. Groups whose answers are all worth the same teach nothing
and are left out; the rest is packed and trained on for a few optimiser steps, whose policy-gradient terms know from the
stored log-probs how far the student has moved since. Then a new snapshot takes the place of the old one. A teacher is
asked only where filter or loss look at it, so that reward and distillation may stand in one loss.
"""

from __future__ import annotations

from itertools import count

from npd_ascend.config.schema import Config
from npd_ascend.errors import UserError
from npd_ascend.recipes import Run, annotate, evaluate, evaluate_snapshot, needs, prepare, register


@register("grpo")
def recipe(config: Config, run: Run) -> None:
    """A whole run; a generation is one turn of the loop."""
    if not config.reward.parts:
        raise UserError("run.recipe grpo learns from rewards: name some in reward.parts, e.g. {math: 1}")
    prepare(config, run)
    wanted = needs(config, "select", "train")

    for generation in count():
        if config.data.slice:
            run("draw", generation)
        run("rollout", generation)
        evaluate_snapshot(config, run, generation)
        run("reward", generation)
        annotate(run, wanted, generation)
        run("select", generation)
        run("pack", generation)
        run("train", generation)
        if not run.refresh(generation):
            break

    run.export(generation)
    evaluate(config, run, "end", generation + 1)
