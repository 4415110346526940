"""Strict on-policy distillation: NPD's loss on answers of the student as it is at each step."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import ONE_GENERATION, LiveMethod, register


@register("on_policy")
class OnPolicy(LiveMethod):
    """Differs from NPD in nothing but the age of the answers: same λ, same divergence over the same k."""

    changes: ClassVar[Settings] = ONE_GENERATION
    whole_vocabulary = False
