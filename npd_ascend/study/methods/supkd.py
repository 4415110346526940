"""Supervised knowledge distillation (Hinton et al. 2015; Sanh et al. 2019)."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import ONE_GENERATION, Method, register


@register("supkd")
class SupKD(Method):
    """(1 − λ) CE + λ top-k KL on the data's answers."""

    changes: ClassVar[Settings] = {**ONE_GENERATION, "rollout.source": "reference", "train.loss.ce_labels": "reference"}
