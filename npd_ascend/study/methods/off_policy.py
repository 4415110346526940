"""The initial student's answers, never refreshed, none left out."""

from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import ONE_GENERATION, Method, register


@register("off_policy")
class OffPolicy(Method):
    """NPD without filter and update."""

    changes: ClassVar[Settings] = ONE_GENERATION
