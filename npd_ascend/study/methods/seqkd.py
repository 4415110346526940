"""Sequence-level knowledge distillation (Kim & Rush, arXiv:1606.07947)."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import ONE_GENERATION, Method, register


@register("seqkd")
class SeqKD(Method):
    """CE on the teacher's answers."""

    changes: ClassVar[Settings] = {**ONE_GENERATION, "rollout.source": "teacher", "train.loss.kd_weight": 0.0}
