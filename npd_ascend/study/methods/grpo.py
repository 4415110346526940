"""GRPO: answers of generations of snapshots, judged and compared within groups."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import Method, register


@register("grpo")
class GRPO(Method):
    """The task's rewards in its teacher's place; eight answers a prompt, drawn at temperature 1."""

    changes: ClassVar[Settings] = {
        "run.recipe": "grpo",
        "rollout.greedy": False,
        "rollout.samples": 8,
        "rollout.temperature": 1.0,
        "select.filter": "none",
        "train.loss.terms": {"ppo_clip:0.2:0.28": 1},
    }
