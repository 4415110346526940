"""Supervised fine-tuning."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import ONE_GENERATION, Method, register


@register("sft")
class SFT(Method):
    """CE on the data's answers."""

    changes: ClassVar[Settings] = {
        **ONE_GENERATION,
        "rollout.source": "reference",
        "train.loss.kd_weight": 0.0,
        "train.loss.ce_labels": "reference",
    }
